// The layers of src/README.md as a test: every #include of the tree must be an edge of tests/include_order.txt.
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.h"

namespace fs = std::filesystem;

namespace {

const fs::path kRoot = DAGMOE_SOURCE_DIR;

std::map<std::string, std::set<std::string>> allowed_edges() {
  std::map<std::string, std::set<std::string>> edges;
  std::ifstream file(kRoot / "tests" / "include_order.txt");
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string folder, word;
    std::getline(words, folder, ':');
    auto& allowed = edges[folder];
    while (words >> word) allowed.insert(word);
    allowed.insert(folder);
  }
  return edges;
}

struct Include {
  fs::path file;
  int line;
  std::string folder, path;  // the including folder, and what stands between the quotes
};

std::vector<Include> includes_below(const fs::path& top, const std::string& fixed_folder) {
  std::vector<Include> includes;
  for (const auto& entry : fs::recursive_directory_iterator(top)) {
    const auto extension = entry.path().extension();
    if (extension != ".h" && extension != ".cpp" && extension != ".cu") continue;
    const std::string folder = fixed_folder.empty() ? fs::relative(entry.path(), top).begin()->string() : fixed_folder;
    std::ifstream file(entry.path());
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
      if (!line.starts_with("#include \"")) continue;
      includes.push_back({fs::relative(entry.path(), kRoot), number, folder, line.substr(10, line.find('"', 10) - 10)});
    }
  }
  return includes;
}

std::vector<Include> all_includes() {
  auto includes = includes_below(kRoot / "src", "");
  for (auto& include : includes_below(kRoot / "eval", "eval")) includes.push_back(std::move(include));
  return includes;
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("tree: every include follows the layers of tests/include_order.txt", "[tree]") {
  const auto edges = allowed_edges();
  std::string problems;
  for (const Include& include : all_includes()) {
    const std::string to = include.path.substr(0, include.path.find('/'));
    const auto from = edges.find(include.folder);
    if (from != edges.end() && from->second.contains(to)) continue;
    problems += include.file.string() + ":" + std::to_string(include.line) + ": " + include.folder +
                " must not include " + include.path + "\n";
  }
  INFO(problems);
  REQUIRE(problems.empty());
}

TEST_CASE("tree: a third-party header appears only in the files that own it", "[tree]") {
  const std::map<std::string, std::vector<std::string>> owners{
      {"yaml-cpp/", {"src/base/yaml.cpp"}},
      {"simdjson", {"src/data/json_record.cpp", "src/data/tokenizer_json.cpp"}},
      {"utf8proc", {"src/data/unicode.cpp"}},
      {"sentencepiece_processor", {"src/data/sentencepiece_tokenizer.cpp"}},
      {"pcre2.h", {"src/base/regex.cpp", "src/data/byte_bpe_regex.cpp"}},
      {"zlib.h", {"src/data/byte_stream.cpp"}},
      {"zstd.h", {"src/data/byte_stream.cpp"}},
      {"xxhash.h", {"src/data/content_hash.cpp"}},
      {"mpi.h", {"src/finetune/ranks.cpp"}},
      {"CLI/", {"src/cli/"}}};
  std::string problems;
  for (const char* top : {"src", "eval"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / top)) {
      if (!entry.is_regular_file()) continue;
      const std::string file = fs::relative(entry.path(), kRoot).string(), text = text_of(entry.path());
      for (const auto& [header, files] : owners) {
        if (text.find("#include <" + header) == std::string::npos) continue;
        bool owned = false;
        for (const auto& owner : files) owned = owned || file.starts_with(owner);
        if (!owned) problems += file + " must not include <" + header + ">\n";
      }
      if (text.find("#include <torch/torch.h>") != std::string::npos)
        problems += file + " must not include <torch/torch.h>\n";
    }
  }
  INFO(problems);
  REQUIRE(problems.empty());
}

TEST_CASE("tree: every header begins with pragma once", "[tree]") {
  for (const char* top : {"src", "eval", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / top)) {
      if (entry.path().extension() != ".h") continue;
      INFO(entry.path());
      REQUIRE(text_of(entry.path()).find("#pragma once") != std::string::npos);
    }
  }
}
