#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "finetune/recipe.h"
#include "finetune/trainer.h"

namespace dagmoe {

/// The folder a run leaves behind (interface.md): recipe.yaml, environment.json, metrics.jsonl, checkpoint-N/, final/.
class RunFolder {
 public:
  /// A new run: throws ConfigError when the folder holds a run already (resume it, or choose another). A resumed run
  /// drops the metrics lines after `resume_step`, which the next steps write again.
  static RunFolder create(const Recipe& recipe);
  static RunFolder reopen(const Recipe& recipe, std::int64_t resume_step);

  void write_step(const StepMetrics& metrics);
  void write_validation(std::int64_t step, const ValidLoss& loss);
  std::filesystem::path checkpoint_path(std::int64_t step) const;
  std::filesystem::path final_path() const { return folder_ / "final"; }
  /// Deletes all but the newest `keep_last` checkpoints.
  void drop_old_checkpoints(std::int64_t keep_last) const;

 private:
  explicit RunFolder(std::filesystem::path folder);
  void write_line(const std::string& line);
  std::filesystem::path folder_;
  std::ofstream metrics_;
};

/// The newest whole checkpoint of a run folder and its step; nullopt when there is none.
struct FoundCheckpoint {
  std::filesystem::path path;
  std::int64_t step = 0;
};
std::optional<FoundCheckpoint> newest_checkpoint(const std::filesystem::path& run_folder);

}  // namespace dagmoe
