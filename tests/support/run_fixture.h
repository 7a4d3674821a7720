// A tiny model, data and a recipe in a temporary folder, and what tests ask of the runs made from them.
#pragma once
#include <sstream>
#include <string>
#include <vector>

#include "finetune/recipe.h"
#include "tests/support/tiny_run.h"

namespace dagmoe::testing {

struct TinyRun {
  TemporaryFolder folder;
  /// `more` is appended to the recipe.
  explicit TinyRun(const std::string& more = "steps: 6\n") {
    write_tiny_folder(folder / "model");
    write_records(folder / "train.jsonl", 40);
    write_records(folder / "valid.jsonl", 9);
    write_text(folder / "a.yaml", recipe_text(folder.path(), more));
  }
  Recipe recipe(const std::vector<std::string>& overrides = {}) const {
    return load_recipe(folder / "a.yaml", overrides);
  }
  /// The same recipe into another folder.
  Recipe into(const std::string& name, std::vector<std::string> overrides = {}) const {
    overrides.push_back("output_dir=" + (folder / name).string());
    return recipe(overrides);
  }
};

/// The lines of metrics.jsonl without what a clock or the machine decides.
inline std::vector<std::string> metrics_of(const std::filesystem::path& run_folder) {
  std::vector<std::string> lines;
  std::istringstream stream(read_text(run_folder / "metrics.jsonl"));
  for (std::string line; std::getline(stream, line);) {
    Json entry = Json::parse(line);
    for (const char* key : {"seconds", "tokens_per_second", "peak_rss_bytes", "gemm_share"}) entry.erase(key);
    lines.push_back(entry.dump());
  }
  return lines;
}

inline bool same_bytes(const Checkpoint& a, const Checkpoint& b, const std::string& name) {
  const auto x = a.bytes(name), y = b.bytes(name);
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

/// Names of the tensors that two model folders hold with different bytes; all must be in both.
inline std::vector<std::string> changed_tensors(const std::filesystem::path& before,
                                                const std::filesystem::path& after) {
  const Checkpoint a = Checkpoint::open(before), b = Checkpoint::open(after);
  std::vector<std::string> names;
  for (const TensorInfo* info : a.tensors()) {
    if (!same_bytes(a, b, info->name)) names.push_back(info->name);
  }
  return names;
}

}  // namespace dagmoe::testing
