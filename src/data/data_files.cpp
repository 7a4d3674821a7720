#include "data/data_files.h"

#include <glob.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

bool is_data_file(const fs::path& path) {
  const fs::path extension = uncompressed_name(path).extension();
  return extension == ".json" || extension == ".jsonl";
}

std::vector<fs::path> matches_of(const fs::path& pattern) {
  glob_t found{};
  const int result = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<fs::path> paths;
  for (std::size_t i = 0; result == 0 && i < found.gl_pathc; ++i) {
    if (fs::is_regular_file(found.gl_pathv[i])) paths.emplace_back(found.gl_pathv[i]);
  }
  ::globfree(&found);
  return paths;
}

}  // namespace

std::vector<fs::path> data_files(const fs::path& path) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.is_regular_file() && is_data_file(entry.path())) files.push_back(entry.path());
    }
    if (files.empty()) throw InputError(str(path.string(), ": no .json or .jsonl file in this folder"));
  } else if (fs::exists(path)) {
    return {path};
  } else if (path.string().find_first_of("*?[") != std::string::npos) {
    files = matches_of(path);
    if (files.empty()) throw InputError(str(path.string(), ": no file matches"));
  } else {
    throw InputError(str(path.string(), ": no such file"));
  }
  std::ranges::sort(files);
  return files;
}

}  // namespace dagmoe
