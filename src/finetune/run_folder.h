#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "finetune/recipe.h"
#include "finetune/tensorboard.h"
#include "finetune/trainer.h"

namespace dagmoe {

/// The folder a run leaves behind (interface.md): recipe.yaml, environment.json, metrics.jsonl and the same scalars as
/// TensorBoard events, experts.jsonl, analysis/ for the report, checkpoint-N/, final/.
class RunFolder {
 public:
  /// A new run: throws ConfigError when the folder holds a run already (resume it, or choose another), InputError when
  /// it cannot be written.
  static RunFolder create(const Recipe& recipe, std::int64_t num_processes = 1);
  /// A resumed run: lines and events after `resume_step`, which the next steps write again, are dropped. Warns of every
  /// setting that differs from the recipe of the folder; throws InputError when a data file is not what it was.
  static RunFolder reopen(const Recipe& recipe, std::int64_t resume_step);
  /// Whether recipe.output_dir holds a run of this very recipe.
  static bool is_of(const Recipe& recipe);

  const std::filesystem::path& path() const noexcept { return folder_; }
  std::filesystem::path final_path() const { return folder_ / "final"; }
  /// The lines of metrics.jsonl that a resumed run found; those written since are not kept, a long run has many.
  const std::vector<Json>& earlier_lines() const noexcept { return earlier_lines_; }

  /// `gemm_share`: of the machine's measured peak of matrix products; 0 when it was not measured.
  /// This and write_validation give the line as it was written.
  Json write_step(const StepMetrics& metrics, double gemm_share);
  Json write_validation(std::int64_t step, const ValidLoss& loss);
  /// {"arc_easy": {"acc": 0.46, ...}, ...}
  void write_scores(std::int64_t step, const Json& scores);
  /// analysis/NAME.json
  void write_analysis(const std::string& name, const Json& content) const;
  /// null when there is none.
  Json read_analysis(const std::string& name) const;
  /// What was written so far survives a loss of power: before a checkpoint that counts on it.
  void sync() const;

 private:
  RunFolder(std::filesystem::path folder, std::vector<Json> earlier_lines, TensorBoardWriter events);
  void write_line(const Json& line);

  std::filesystem::path folder_;
  std::vector<Json> earlier_lines_;
  std::ofstream metrics_, experts_;
  TensorBoardWriter events_;
};

}  // namespace dagmoe
