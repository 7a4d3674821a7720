#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "finetune/recipe.h"
#include "model/decoder.h"

namespace dagmoe {

/// One row of the table that is printed before the first step: what trains and what does not.
struct GroupRow {
  std::string group;
  std::int64_t num_tensors = 0, num_parameters = 0, num_trainable = 0;
};
std::vector<GroupRow> group_rows(const ModelConfig& config, const std::vector<bool>& trainable);
std::string group_table(const std::vector<GroupRow>& rows);

struct RunOptions {
  bool resume = false;   ///< go on from the newest checkpoint of output_dir
  bool dry_run = false;  ///< everything up to the first step, nothing written
  /// Asked after every step; true ends the run after a clean checkpoint.
  std::function<bool()> should_stop = [] { return false; };
};

struct RunResult {
  std::filesystem::path output;  ///< final/, or the checkpoint of an interrupted run
  std::int64_t steps = 0;
  double train_loss = 0.0;  ///< mean over the last tenth of the steps, weighted by supervised tokens
  double valid_loss_before = 0.0, valid_loss_after = 0.0;  ///< nats per supervised token; NaN without data.valid
  double tokens_per_second = 0.0, seconds = 0.0;           ///< of the steps, validation and saving left out
  bool interrupted = false;
};

/// A whole training run as the recipe says: group table, validation before and after, steps with metrics.jsonl and
/// checkpoints, final/. Throws ConfigError for what does not fit the model, InputError for data and files,
/// NumericsError (weights unchanged).
RunResult run_finetune(const Recipe& recipe, const RunOptions& options);

}  // namespace dagmoe
