#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "base/json.h"
#include "finetune/ranks.h"
#include "finetune/recipe.h"
#include "model/decoder.h"

namespace dagmoe {

struct RunOptions {
  bool resume = false;     ///< go on from the newest whole checkpoint of output_dir
  Ranks* ranks = nullptr;  ///< the processes that run it together; nullptr: this one alone
  /// Asked after every step, on every rank; true ends the run after a clean checkpoint.
  std::function<bool()> should_stop = [] { return false; };
  /// Scores the tasks of eval.tasks: {"arc_easy": {"acc": 0.46, "acc_stderr": 0.02}}. Needed when the recipe has some.
  std::function<Json(const Decoder& model)> evaluate = {};
  /// The machine's peak of matrix products in the compute dtype, multiply and add counted apart, per second; 0 or
  /// absent: no share of it is shown.
  std::function<double(at::ScalarType)> measure_gemm_peak = {};
  /// For tests: what memory.budget_gb counts for the program itself, instead of what the process takes.
  std::optional<std::int64_t> program_bytes = {};
  /// For tests: TrainConfig::on_module.
  std::function<void(const std::string& module, const at::Tensor& output_TD)> on_module = {};
};

struct RunResult {
  std::filesystem::path output;  ///< final/, or the checkpoint of an interrupted run
  std::int64_t steps = 0;
  double train_loss = 0.0;  ///< mean over the last tenth of the steps, weighted by supervised tokens
  double valid_loss_before = 0.0, valid_loss_after = 0.0;  ///< nats per supervised token; NaN without data.valid
  std::optional<std::int64_t> best_step;                   ///< of the lowest validation loss
  double tokens_per_second = 0.0, seconds = 0.0;           ///< of the steps, validation and saving left out
  bool interrupted = false, stopped_early = false;
};

/// A whole training run as the recipe says: group table, validation before and after, steps with metrics and
/// checkpoints, final/, report. Throws ConfigError for what does not fit the model, InputError for data and files,
/// NumericsError for a loss or gradient that is not finite: the weights are those before the step, and a checkpoint
/// has them.
/// The first rank runs it and the others follow: they take part in steps and validation, write and print nothing, and
/// get an empty result.
RunResult run_finetune(const Recipe& recipe, const RunOptions& options);

}  // namespace dagmoe
