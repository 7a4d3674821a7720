#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "finetune/checkpoints.h"
#include "finetune/group_table.h"
#include "finetune/plan_memory.h"
#include "finetune/plan_recompute.h"
#include "finetune/recipe.h"

namespace dagmoe {

/// What a run would find in its output_dir, and do to it.
struct OutputPlan {
  std::filesystem::path folder;
  bool exists = false, holds_run = false, has_final = false;
  std::vector<FoundCheckpoint> checkpoints;  ///< whole ones, by step
  std::vector<std::string> damaged;          ///< "checkpoint-20: model.safetensors is missing"
  /// A line each: "a new run is refused: ...", "--resume goes on from step 20".
  std::vector<std::string> consequences;
};
OutputPlan plan_output(const Recipe& recipe);

/// The run's data, packed as the run will pack it.
struct DataPlan {
  std::int64_t records = 0, bad_records = 0;
  std::int64_t num_steps = 0;
  std::int64_t packed_steps = 0;  ///< the first of the run; what follows is of these
  double tokens_per_step = 0.0, supervised_per_step = 0.0, sequences_per_step = 0.0, micro_batches_per_step = 0.0;
  double computed_per_step = 0.0;           ///< tokens, those of beginnings that samples share once
  std::int64_t truncated = 0, skipped = 0;  ///< samples cut at max_seq_len, and those left without a target
  std::int64_t split = 0;                   ///< texts learnt in parts
  MicroBatches micro_batches;
};

/// Share of the machine's peak of matrix products that training steps are expected to reach, a wide guess: gemm_share
/// of runs on two busy cores was 0.15 to 0.27 for DAG tuning and 0.22 for a full run. `measure` needs no guess.
inline constexpr double kLeastGemmShare = 0.15, kMostGemmShare = 0.45;

/// Seconds of the training steps, without validation, evaluation and saving.
struct TimePlan {
  double flops_per_step = 0.0;
  double recompute_flops_per_step = 0.0;                   ///< of these, those of layers that run again
  double gemm_peak = 0.0;                                  ///< measured, per second; 0: not measured, and no estimate
  double step_seconds_low = 0.0, step_seconds_high = 0.0;  ///< equal when a step was measured
  bool is_measured = false;
};

struct RunPlan {
  std::string recipe_file, model_path, model_summary;
  std::vector<GroupRow> groups;
  MemoryPlan memory;
  RecomputeChoice recompute;
  std::string recompute_text;  ///< empty: every layer keeps what it needs, as nothing else was asked for
  DataPlan data;
  TimePlan time;
  OutputPlan output;
  std::vector<std::string> warnings;  ///< settings and rules without effect
  Json samples;                       ///< sample_json of the first ones
};

struct PlanOptions {
  /// Loads the model and times one micro batch of the run's own data; else the time comes from the number of
  /// operations.
  bool measure = false;
  /// As in RunOptions.
  std::function<double(at::ScalarType)> measure_gemm_peak = {};
};

/// What a run of this recipe would do, found out from names, shapes and data; writes nothing, and loads no weights
/// unless asked to measure. Throws what run_finetune would throw before its first step.
RunPlan make_plan(const Recipe& recipe, const PlanOptions& options);

/// For a person; `color`: the supervised part of the samples is green, else it stands in brackets.
std::string plan_text(const RunPlan& plan, bool color);
/// The same as one document.
Json plan_json(const RunPlan& plan);

}  // namespace dagmoe
