#include "finetune/plan.h"

#include <algorithm>

#include "base/text.h"
#include "finetune/flops.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "finetune/trainer.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSampleCount = 2;
// Steps that are packed to learn the size of micro batches: they differ little from each other.
constexpr std::int64_t kMostPackedSteps = 64;
std::string model_summary(const ModelConfig& config) {
  std::string text = str(config.model_type, ", ", config.num_hidden_layers, " layers of ", config.hidden_size, ", ",
                         with_commas(num_parameters(config)), " parameters");
  if (config.moe) text += str(", ", config.moe->num_experts, " experts, top ", config.moe->num_experts_per_tok);
  if (config.dag) text += str(", DAG L = ", config.dag->num_iterations, ", G = ", config.dag->node_size);
  return text;
}

void add_step(DataPlan& plan, const StepBatch& step, bool shares) {
  plan.packed_steps += 1;
  plan.tokens_per_step += static_cast<double>(step.num_tokens);
  plan.supervised_per_step += static_cast<double>(step.num_targets);
  plan.sequences_per_step += static_cast<double>(step.num_examples);
  plan.micro_batches_per_step += static_cast<double>(step.micro_batches.size());
  MicroBatches& batches = plan.micro_batches;
  batches.several_a_step = batches.several_a_step || step.micro_batches.size() > 1;
  for (const PackedBatch& batch : step.micro_batches) {
    const std::int64_t num_rows = shares ? share_prefixes(batch).rows.num_tokens() : batch.num_tokens();
    plan.computed_per_step += static_cast<double>(num_rows);
    BatchShape& largest = batches.largest;
    largest.tokens = std::max(largest.tokens, num_rows);
    largest.supervised_tokens = std::max(largest.supervised_tokens, batch.num_targets);
    for (std::size_t s = 0; s + 1 < batch.segment_offsets.size(); ++s) {
      largest.longest_sequence =
          std::max(largest.longest_sequence, batch.segment_offsets[s + 1] - batch.segment_offsets[s]);
    }
  }
}

std::int64_t num_valid(const RunData& data) { return data.valid ? data.valid->size() : 0; }

// The first steps of the run, packed as the trainer packs them. The stream stands afterwards where it stood before.
DataPlan plan_data(const Recipe& recipe, RunData& data) {
  DataPlan plan;
  const StreamCounters before = data.train.counters();
  plan.records = before.records, plan.bad_records = before.bad_records;
  plan.num_steps = data.num_steps;
  const StepBatchConfig batch = batch_config(recipe);
  const bool shares = shares_prefixes(recipe);
  const StreamPosition start = data.train.position();
  while (plan.packed_steps < std::min(data.num_steps, kMostPackedSteps)) {
    auto step = next_step_batch(data.train, batch);
    if (!step) step = next_step_batch(data.train, batch);  // the next epoch has begun
    if (!step) break;
    add_step(plan, *step, shares);
  }
  data.train.seek(start);
  const StreamCounters after = data.train.counters();
  // A run of epochs was packed whole when its steps were counted.
  const auto a_pass = [&](std::int64_t StreamCounters::*count) {
    return recipe.epochs ? before.*count / *recipe.epochs : after.*count - before.*count;
  };
  plan.truncated = a_pass(&StreamCounters::truncated);
  plan.split = a_pass(&StreamCounters::split);
  plan.skipped = a_pass(&StreamCounters::without_target);
  const double steps = static_cast<double>(std::max<std::int64_t>(plan.packed_steps, 1));
  for (double* sum : {&plan.tokens_per_step, &plan.supervised_per_step, &plan.sequences_per_step,
                      &plan.micro_batches_per_step, &plan.computed_per_step}) {
    *sum /= steps;
  }
  plan.micro_batches.validation_tokens = largest_micro_batches(recipe, num_valid(data)).validation_tokens;
  return plan;
}

// Two optimizer steps of one micro batch each, of which the second counts: the first builds programs and touches
// memory.
double measured_seconds_per_token(const Recipe& recipe, const RunSetup& setup, RunData& data) {
  Decoder model = load_run_model(recipe, setup);
  TrainConfig config = train_config(recipe, setup);
  config.num_steps = data.num_steps;
  config.batch.step_sequences = recipe.data.packing ? 0 : 1;
  if (recipe.data.packing) {
    const std::int64_t step_tokens = recipe.batch.tokens.value_or(recipe.batch.micro_batch_tokens);
    config.batch.step_tokens = std::min(step_tokens, recipe.batch.micro_batch_tokens);
  }
  Trainer trainer(model, data.train, config);
  trainer.step();
  const StepMetrics metrics = trainer.step();
  return metrics.seconds / static_cast<double>(metrics.tokens);
}

TimePlan plan_time(const Recipe& recipe, const RunSetup& setup, const DataPlan& data, const PlanOptions& options,
                   RunData& run_data) {
  TimePlan time;
  const StepTokens step{static_cast<std::int64_t>(data.computed_per_step),
                        static_cast<std::int64_t>(data.supervised_per_step)};
  time.flops_per_step = step_flops(setup, step);
  const std::vector<double> again = recompute_flops(setup);
  for (std::size_t n = 0; n < again.size(); ++n) {
    if (setup.recompute(static_cast<std::int64_t>(n)))
      time.recompute_flops_per_step += again[n] * data.computed_per_step;
  }
  if (options.measure) {
    time.is_measured = true;
    time.step_seconds_low = time.step_seconds_high =
        measured_seconds_per_token(recipe, setup, run_data) * data.tokens_per_step;
  } else if (options.measure_gemm_peak) {
    time.gemm_peak = options.measure_gemm_peak(recipe.dtype == ComputeType::kBFloat16 ? at::kBFloat16 : at::kFloat);
    time.step_seconds_low = time.flops_per_step / time.gemm_peak / kMostGemmShare;
    time.step_seconds_high = time.flops_per_step / time.gemm_peak / kLeastGemmShare;
  }
  return time;
}

}  // namespace

OutputPlan plan_output(const Recipe& recipe) {
  OutputPlan plan;
  plan.folder = recipe.output_dir;
  plan.exists = fs::exists(plan.folder);
  plan.has_final = fs::exists(plan.folder / "final");
  plan.holds_run = plan.has_final || fs::exists(plan.folder / "metrics.jsonl");
  for (const FoundCheckpoint& found : list_checkpoints(plan.folder)) {
    if (const auto damage = checkpoint_damage(found.path)) {
      plan.damaged.push_back(str(found.path.filename().string(), ": ", *damage));
    } else {
      plan.checkpoints.push_back(found);
    }
  }
  if (!plan.holds_run) {
    plan.consequences.push_back(plan.exists ? "the folder is there and holds no run" : "a new folder");
    if (fs::exists(plan.folder / "recipe.yaml")) plan.consequences.push_back("recipe.yaml in it is replaced");
    return plan;
  }
  plan.consequences.push_back("holds a run already: without --resume the run is refused");
  if (!plan.checkpoints.empty()) {
    plan.consequences.push_back(str("--resume goes on from step ", plan.checkpoints.back().step,
                                    "; lines of metrics.jsonl after it are written again"));
  } else if (!plan.damaged.empty()) {
    plan.consequences.push_back("--resume is refused as well: no checkpoint is whole");
  } else {
    plan.consequences.push_back(
        "--resume starts from the beginning, as there is no checkpoint; metrics.jsonl is emptied");
  }
  if (plan.has_final) plan.consequences.push_back("final/ is replaced when a resumed run ends");
  return plan;
}

RunPlan make_plan(const Recipe& recipe, const PlanOptions& options) {
  RunSetup setup = prepare_run(recipe);
  RunData data = open_data(recipe);
  RunPlan plan;
  plan.recipe_file = recipe.file;
  plan.model_path = recipe.model.path;
  plan.model_summary = model_summary(setup.config);
  plan.groups = group_rows(setup);
  plan.output = plan_output(recipe);
  plan.warnings = setup.warnings;
  plan.samples = sample_json(data.train, *data.tokenizer, kSampleCount);
  plan.data = plan_data(recipe, data);
  const std::int64_t program = program_bytes();
  plan.recompute = choose_recompute(recipe, setup, num_valid(data), program);
  plan.recompute_text = recompute_text(recipe, plan.recompute);
  setup.recompute = plan.recompute.recompute;
  plan.memory = plan_memory(recipe, setup, plan.data.micro_batches, program);
  plan.time = plan_time(recipe, setup, plan.data, options, data);
  return plan;
}

}  // namespace dagmoe
