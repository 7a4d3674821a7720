// What `dagmoe plan` says before a run: sums, the direction of every lever, the data as it will be packed, what happens
// to the output folder; and its memory account beside a run's own peak.
#include "finetune/plan.h"

#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "base/text.h"
#include "finetune/run.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

RunPlan plan_of(const TinyRun& run, const std::vector<std::string>& overrides = {}) {
  return make_plan(run.recipe(overrides), {});
}

// The account alone, with sizes at which everything counts.
MemoryPlan memory_of(const TinyRun& run, std::vector<std::string> overrides,
                     const MicroBatches& batches = {.largest = {4096, 2048, 512}, .several_a_step = true}) {
  const Recipe recipe = run.recipe(overrides);
  return plan_memory(recipe, prepare_run(recipe), batches, /*program_bytes=*/0);
}

std::vector<std::string> files_below(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    names.push_back(entry.path().string());
  std::sort(names.begin(), names.end());
  return names;
}

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome program(const TinyRun& run, const std::string& arguments) {
  const std::string command = std::string(DAGMOE_BINARY_DIR) + "/dagmoe " + arguments + " >" +
                              (run.folder / "out").string() + " 2>" + (run.folder / "err").string();
  const int status = std::system(command.c_str());
  return {WEXITSTATUS(status), read_text(run.folder / "out"), read_text(run.folder / "err")};
}

}  // namespace

TEST_CASE("plan: the categories of memory add up, and the parameters' are those of the group table", "[plan]") {
  const TinyRun run;
  const RunPlan plan = plan_of(run);
  const MemoryPlan& memory = plan.memory;
  REQUIRE(memory.total() == memory.mapped + memory.weights + memory.master + memory.gradients + memory.optimizer +
                                memory.activations + memory.logits + memory.program);
  MemoryParts parts;
  for (const GroupRow& row : plan.groups) parts += row.memory;
  REQUIRE(memory.master == parts.master);
  REQUIRE(memory.optimizer == parts.optimizer);
  REQUIRE(memory.gradients == parts.gradients);  // several micro batches a step
  REQUIRE(memory.activations > 0);
  REQUIRE(memory.program > 0);
}

TEST_CASE("plan: what one dense layer saves, counted by hand", "[plan]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model", /*dense=*/true);
  write_records(folder / "train.jsonl", 4);
  write_records(folder / "valid.jsonl", 4);
  write_text(folder / "a.yaml", recipe_text(folder.path(), "steps: 1\n"));
  const auto step_of = [&](const char* trainable, const char* dtype) {
    const std::vector<std::string> overrides = {str("trainable=", trainable), str("dtype=", dtype)};
    const Recipe recipe = load_recipe(folder / "a.yaml", overrides);
    return step_activations(prepare_run(recipe), {100, 50, 30}, recipe.dtype == ComputeType::kBFloat16);
  };
  // T = 100, D = 16, O = 16, k and v 8 each, F = 24, 4 heads. Stream before and after attention, x of q, k and v, the
  // attention's q, k, v and result, x of gate and up, gate, up and their product; three rows of floats for norms and
  // four for the attention.
  const std::int64_t elements = 100 * (16 + 16 + 16 + (16 + 8 + 8 + 16) + 16 + 3 * 24), floats = 100 * (2 + 4);
  REQUIRE(step_of("[full]", "float32").layers[1].saved == 4 * (elements + floats));
  REQUIRE(step_of("[full]", "bfloat16").layers[1].saved == 2 * elements + 4 * floats);
  REQUIRE(step_of("[full]", "float32").layers[1].copies == 0);
  REQUIRE(step_of("[full]", "bfloat16").layers[1].copies == 2 * (16 * (16 + 8 + 8 + 16) + 3 * 16 * 24));
  // The last layer's down_proj alone: its input, and nothing in the layer below.
  const StepActivations down = step_of("['model.layers.1.mlp.down_proj.weight']", "float32");
  REQUIRE(down.layers[0].saved == 0);
  REQUIRE_FALSE(down.layers[0].is_recorded);
  REQUIRE(down.layers[1].saved == 4 * 100 * 24);
}

TEST_CASE("plan: each lever moves its category the right way", "[plan]") {
  const TinyRun run;
  const MemoryPlan full = memory_of(run, {"trainable=[full]"}), dag = memory_of(run, {"trainable=[dag]"});
  REQUIRE(dag.master < full.master);
  REQUIRE(dag.gradients < full.gradients);
  REQUIRE(dag.optimizer < full.optimizer);
  REQUIRE(dag.activations < full.activations);
  REQUIRE(memory_of(run, {"trainable=[full]", "recompute=true"}).activations < full.activations);
  REQUIRE(memory_of(run, {"trainable=[full]", "optimizer.name=sgd"}).optimizer < full.optimizer);
  REQUIRE(memory_of(run, {"trainable=[full]", "optimizer.name=sgd", "optimizer.momentum=0"}).optimizer == 0);
  REQUIRE(memory_of(run, {"trainable=[full]", "dtype=bfloat16"}).activations < full.activations);
  REQUIRE(memory_of(run, {"trainable=[full]", "dtype=bfloat16"}).weights > full.weights);
  REQUIRE(memory_of(run, {"trainable=[{group: experts, layers: [1]}]"}).activations <
          memory_of(run, {"trainable=[experts]"}).activations);
  // More tokens, more activations; one micro batch a step, no gradients beside the activations.
  REQUIRE(memory_of(run, {}, {.largest = {8192, 4096, 512}, .several_a_step = true}).activations > dag.activations);
  REQUIRE(memory_of(run, {}, {.largest = {4096, 2048, 512}, .several_a_step = false}).gradients < dag.gradients);
}

TEST_CASE("plan: 8-bit state is smaller for tensors that are large enough", "[plan]") {
  const TemporaryFolder folder;
  const std::vector<std::int64_t> shape{128, 128};
  OptimizerConfig config;
  const std::int64_t whole = optimizer_state_bytes(config, "model.layers.0.mlp.up_proj.weight", shape);
  config.kind = OptimizerKind::kAdamW8bit;
  REQUIRE(optimizer_state_bytes(config, "model.layers.0.mlp.up_proj.weight", shape) < whole / 3);
}

TEST_CASE("plan: the data are packed as the run packs them", "[plan]") {
  const TinyRun run("epochs: 2\n");
  const RunPlan plan = plan_of(run);
  const Recipe recipe = run.recipe();
  run_finetune(recipe, {});
  std::int64_t steps = 0;
  double tokens = 0, sequences = 0;
  for (const auto& line : metrics_of(recipe.output_dir)) {
    const Json entry = Json::parse(line);
    if (!entry.contains("tokens")) continue;
    steps += 1;
    tokens += entry["tokens"].get<double>();
    sequences += entry["sequences"].get<double>();
  }
  REQUIRE(plan.data.num_steps == steps);
  REQUIRE(plan.data.packed_steps == steps);
  REQUIRE(plan.data.tokens_per_step * static_cast<double>(steps) == Approx(tokens));
  REQUIRE(plan.data.sequences_per_step * static_cast<double>(steps) == Approx(sequences));
  REQUIRE(plan.data.records == 40);
  REQUIRE(plan.data.micro_batches.largest.tokens <= 300);
  REQUIRE(plan.data.micro_batches.several_a_step);
  // Without packing every sample is a micro batch.
  const DataPlan unpacked = plan_of(run, {"data.packing=false", "output_dir=" + (run.folder / "b").string()}).data;
  REQUIRE(unpacked.micro_batches.largest.tokens == unpacked.micro_batches.largest.longest_sequence);
  REQUIRE(unpacked.micro_batches_per_step == unpacked.sequences_per_step);
}

TEST_CASE("plan: says what a run would do to its folder, and changes nothing in it", "[plan]") {
  const TinyRun run("steps: 4\ncheckpoint: {every_steps: 2}\n");
  const Recipe recipe = run.recipe();
  REQUIRE(plan_output(recipe).consequences == std::vector<std::string>{"a new folder"});
  const auto before = files_below(run.folder.path());
  make_plan(recipe, {});
  make_plan(recipe, {.measure = true});
  REQUIRE(files_below(run.folder.path()) == before);

  run_finetune(recipe, {});
  OutputPlan output = plan_output(recipe);
  REQUIRE(output.holds_run);
  REQUIRE(output.checkpoints.size() == 1);
  REQUIRE(output.checkpoints.back().step == 2);
  REQUIRE_THAT(join(output.consequences, "\n"), Catch::Contains("without --resume the run is refused") &&
                                                    Catch::Contains("goes on from step 2") &&
                                                    Catch::Contains("final/ is replaced"));
  write_text(std::filesystem::path(recipe.output_dir) / "checkpoint-2" / "model.safetensors", "cut");
  output = plan_output(recipe);
  REQUIRE(output.checkpoints.empty());
  REQUIRE(output.damaged.size() == 1);
  REQUIRE_THAT(join(output.consequences, "\n"), Catch::Contains("no checkpoint is whole"));
}

TEST_CASE("plan: loads no weights", "[plan]") {
  const TinyRun run;
  // The file's header stays, its tensors become NaN: whoever computed with them would show it.
  const auto weights = run.folder / "model" / "model.safetensors";
  std::string bytes = read_text(weights);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::fill(bytes.begin() + 8 + static_cast<std::ptrdiff_t>(header), bytes.end(), '\xff');
  write_text(weights, bytes);
  REQUIRE(plan_of(run).memory.total() > 0);
  REQUIRE_THROWS_AS(make_plan(run.recipe(), {.measure = true}), NumericsError);
}

TEST_CASE("plan: time comes from operations and the peak, or from a measured micro batch", "[plan]") {
  const TinyRun run;
  const RunPlan estimated = make_plan(run.recipe(), {.measure_gemm_peak = [](at::ScalarType) { return 1e9; }});
  REQUIRE_FALSE(estimated.time.is_measured);
  REQUIRE(estimated.time.step_seconds_low < estimated.time.step_seconds_high);
  REQUIRE(estimated.time.step_seconds_low >= estimated.time.flops_per_step / 1e9);
  const RunPlan measured = make_plan(run.recipe(), {.measure = true});
  REQUIRE(measured.time.is_measured);
  REQUIRE(measured.time.step_seconds_low > 0);
  REQUIRE(measured.time.step_seconds_low == measured.time.step_seconds_high);
  REQUIRE_THAT(plan_text(measured, false), Catch::Contains("measured on one micro batch"));
  REQUIRE_THAT(plan_text(estimated, false), Catch::Contains("estimated, not measured"));
}

TEST_CASE("plan: text and JSON hold the same", "[plan]") {
  const TinyRun run;
  const RunPlan plan = plan_of(run, {"schedule.decay_fraction=0.3", "schedule.kind=linear", "checkpoint.keep_last=5"});
  const std::string text = plan_text(plan, false);
  const Json json = plan_json(plan);
  for (const auto& warning : plan.warnings) REQUIRE_THAT(text, Catch::Contains(warning));
  REQUIRE(json["warnings"] == plan.warnings);
  REQUIRE(json["warnings"].size() == 2);
  for (const GroupRow& row : plan.groups) REQUIRE_THAT(text, Catch::Contains("  " + row.group));
  REQUIRE(json["groups"] == group_json(plan.groups));
  REQUIRE(json["memory"]["total"] == plan.memory.total());
  std::int64_t sum = 0;
  for (const auto& [name, bytes] : json["memory"].items()) {
    if (name != "total" && name != "moment") sum += bytes.get<std::int64_t>();
    if (name != "moment") REQUIRE_THAT(text, Catch::Contains(human_bytes(bytes.get<std::int64_t>())));
  }
  REQUIRE(sum == plan.memory.total());
  REQUIRE(json["data"]["steps"] == 6);
  REQUIRE_THAT(text, Catch::Contains("40 records; 6 steps"));
  REQUIRE(json["samples"].size() == 2);
  // The answer alone is learnt, and marked so.
  REQUIRE_THAT(text, Catch::Contains("[[aaaa bbbb"));
  REQUIRE_THAT(plan_text(plan, true), Catch::Contains("\x1b[32maaaa bbbb"));
  REQUIRE_THAT(text, !Catch::Contains("\x1b"));
}

TEST_CASE("plan: the program's exit codes, and finetune --dry-run is the same", "[plan]") {
  const TinyRun run;
  const std::string recipe = (run.folder / "a.yaml").string();
  const Outcome plan = program(run, "plan " + recipe);
  REQUIRE(plan.code == 0);
  REQUIRE_THAT(plan.out, Catch::Contains("Memory at its fullest"));
  const Outcome json = program(run, "plan " + recipe + " --json steps=3");
  REQUIRE(json.code == 0);
  REQUIRE(Json::parse(json.out)["data"]["steps"] == 3);
  const Outcome dry = program(run, "finetune " + recipe + " --dry-run");
  REQUIRE(dry.code == 0);
  REQUIRE_THAT(dry.out, Catch::Contains("Memory at its fullest"));
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run"));
  REQUIRE(program(run, "plan " + recipe + " trainable=[nothing]").code == 2);
  REQUIRE(program(run, "plan " + recipe + " model.path=/nowhere").code == 3);
  REQUIRE(program(run, "plan " + recipe + " data.train.0.path=/nowhere").code == 3);
}

namespace {

// Estimate over measured peak of the tiny recipe with other settings.
double estimate_over_peak(const TinyRun& run, const std::string& settings) {
  const std::string recipe = (run.folder / "a.yaml").string() + " steps=1 " + settings;
  const Outcome plan = program(run, "plan --json " + recipe);
  REQUIRE(plan.code == 0);
  REQUIRE(program(run, "finetune " + recipe).code == 0);
  const double estimate = Json::parse(plan.out)["memory"]["total"].get<double>();
  double measured = 0;
  for (const auto& line : split(read_text(run.folder / "run" / "metrics.jsonl"), '\n')) {
    if (!line.empty()) measured = std::max(measured, Json::parse(line).value("peak_rss_bytes", 0.0));
  }
  std::printf("estimate %.0f MB, measured %.0f MB\n", estimate / 1e6, measured / 1e6);
  return estimate / measured;
}

}  // namespace

TEST_CASE("plan: the estimate is within 15 % of a tiny run's peak, which is the program's own", "[plan]") {
  const TinyRun run;
  REQUIRE(std::abs(estimate_over_peak(run, "dtype=bfloat16") - 1) < 0.15);
}

TEST_CASE("plan: the estimate is within 15 % of the peak of a run of SmolLM2", "[plan]") {
  if (!std::filesystem::exists(smollm2_folder() / "model.safetensors")) {
    std::printf("SKIPPED: no imported SmolLM2 at %s\n", smollm2_folder().c_str());
    return;
  }
  const TinyRun run;
  const std::string model = " model.path=" + smollm2_folder().string();
  REQUIRE(std::abs(estimate_over_peak(run, "trainable=[attention] dtype=bfloat16 data.valid=[]" + model) - 1) < 0.15);
}
