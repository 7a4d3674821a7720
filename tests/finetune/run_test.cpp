#include "finetune/run.h"

#include "base/error.h"
#include "finetune/checkpoints.h"
#include "finetune/group_table.h"
#include "finetune/trainer.h"
#include "model/families.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

TEST_CASE("run: only the DAG changes, everything else is bit-identical, and the loss falls", "[finetune]") {
  const TinyRun run("steps: 30\n");
  const RunResult result = run_finetune(run.recipe(), {});
  REQUIRE(result.steps == 30);
  REQUIRE(result.valid_loss_after < result.valid_loss_before);
  const Checkpoint before = Checkpoint::open(run.folder / "model"), after = Checkpoint::open(result.output);
  REQUIRE(before.tensors().size() == after.tensors().size());
  for (const TensorInfo* info : before.tensors()) {
    INFO(info->name);
    REQUIRE(same_bytes(before, after, info->name) == (info->name.find(".mlp.dag.") == std::string::npos));
  }
}

TEST_CASE("run: the group table has only the DAG as trainable", "[finetune]") {
  const TinyRun run;
  const RunSetup setup = prepare_run(run.recipe());
  const auto rows = group_rows(setup);
  for (const GroupRow& row : rows) {
    INFO(row.group);
    REQUIRE((row.num_trainable > 0) == (row.group == "dag"));
    REQUIRE(row.memory.optimizer == 8 * row.num_trainable);
    REQUIRE(row.memory.master == 4 * row.num_trainable);
    REQUIRE(row.memory.mapped == 4 * (row.num_parameters - row.num_trainable));
  }
  REQUIRE(rows.front().num_trainable == 2 * num_dag_parameters(*setup.config.dag, setup.config.hidden_size));
  REQUIRE_THAT(group_table(rows), Catch::Contains("0.02"));
}

TEST_CASE("run: a run repeats to the digit", "[finetune]") {
  const TinyRun run;
  run_finetune(run.recipe({"output_dir=" + (run.folder / "one").string()}), {});
  run_finetune(run.recipe({"output_dir=" + (run.folder / "two").string()}), {});
  REQUIRE(metrics_of(run.folder / "one") == metrics_of(run.folder / "two"));
}

TEST_CASE("run: stopping and resuming gives the same steps and weights, bit for bit", "[finetune]") {
  const TinyRun run;
  const RunResult whole = run_finetune(run.recipe({"output_dir=" + (run.folder / "whole").string()}), {});
  const Recipe parts = run.recipe({"output_dir=" + (run.folder / "parts").string()});
  int steps = 0;
  const RunResult first = run_finetune(parts, {.should_stop = [&steps] { return ++steps == 3; }});
  REQUIRE(first.interrupted);
  REQUIRE(first.steps == 3);
  REQUIRE_NOTHROW(load_decoder(Checkpoint::open(first.output), {}));
  const RunResult second = run_finetune(parts, {.resume = true});
  REQUIRE(second.steps == 6);
  const Checkpoint a = Checkpoint::open(whole.output), b = Checkpoint::open(second.output);
  for (const TensorInfo* info : a.tensors()) {
    INFO(info->name);
    REQUIRE(same_bytes(a, b, info->name));
  }
}

TEST_CASE("run: a run stopped inside a text goes on with the rest of it, bit for bit", "[finetune]") {
  const TinyRun run("steps: 6\n");
  write_text(run.folder / "texts.jsonl", Json{{"text", std::string(2500, 'a') + std::string(2500, 'b')}}.dump() + "\n");
  const std::string data = "data.train.0={path: " + (run.folder / "texts.jsonl").string() + ", format: text}";
  run_finetune(run.into("whole", {data}), {});
  RunOptions stops;
  stops.should_stop = [steps = 0]() mutable { return ++steps == 3; };
  run_finetune(run.into("parts", {data}), stops);
  const Json state = Json::parse(read_text(run.folder / "parts" / "checkpoint-3" / "trainer_state.json"));
  REQUIRE(state.at("next_index") == 0);
  REQUIRE(state.at("next_token") == 3 * 511 + 1);  // each step is one part of data.max_seq_len, the default
  run_finetune(run.into("parts", {data}), {.resume = true});
  REQUIRE(metrics_of(run.folder / "parts") == metrics_of(run.folder / "whole"));
  REQUIRE(changed_tensors(run.folder / "whole" / "final", run.folder / "parts" / "final").empty());
}

TEST_CASE("run: micro batches of any size give the gradient of the whole step", "[finetune]") {
  const TinyRun run;
  const auto first_step = [&run](const std::string& name, const std::string& micro_batch_tokens) {
    run_finetune(run.recipe({"output_dir=" + (run.folder / name).string(), "steps=1",
                             "batch.micro_batch_tokens=" + micro_batch_tokens}),
                 {});
    return Json::parse(metrics_of(run.folder / name)[1]);
  };
  const Json small = first_step("small", "64"), large = first_step("large", "4096");
  REQUIRE(small["loss"].get<double>() == Approx(large["loss"].get<double>()).epsilon(1e-5));
  REQUIRE(small["grad_norm"].get<double>() == Approx(large["grad_norm"].get<double>()).epsilon(1e-4));
}

TEST_CASE("run: old checkpoints are dropped, the newest stay", "[finetune]") {
  const TinyRun run("steps: 6\ncheckpoint: {every_steps: 1, keep_last: 2}\n");
  run_finetune(run.recipe(), {});
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run" / "checkpoint-3"));
  REQUIRE(newest_checkpoint(run.folder / "run")->step == 5);
  REQUIRE(std::filesystem::exists(run.folder / "run" / "checkpoint-4"));
}

TEST_CASE("run: a second run into the same folder is refused", "[finetune]") {
  const TinyRun run("steps: 1\n");
  run_finetune(run.recipe(), {});
  REQUIRE_THROWS_WITH(run_finetune(run.recipe(), {}), Catch::Contains("holds a run already; add --resume"));
}

TEST_CASE("run: a missing data file is named with the recipe that lists it", "[finetune]") {
  const TinyRun run;
  std::filesystem::remove(run.folder / "train.jsonl");
  REQUIRE_THROWS_WITH(run_finetune(run.recipe(), {}),
                      Catch::Contains("train.jsonl: no such file; it is listed under data in"));
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run"));
}

TEST_CASE("run: a DAG can be added to a MoE that has none", "[finetune]") {
  const TinyRun run("steps: 2\n");
  // The same folder without its DAG is a plain Mixtral.
  const Checkpoint source = Checkpoint::open(run.folder / "model");
  std::vector<TensorSource> tensors;
  for (const TensorInfo* info : source.tensors()) {
    if (info->name.find(".dag.") != std::string::npos) continue;
    tensors.push_back(
        {info->name, info->dtype, info->shape, [&source, name = info->name] { return source.bytes(name); }});
  }
  ModelConfig config = source.config();
  config.model_type = "mixtral", config.dag.reset();
  std::filesystem::create_directories(run.folder / "plain");
  write_text(run.folder / "plain" / "config.json", model_config_json(config).dump());
  write_safetensors(run.folder / "plain" / "model.safetensors", std::move(tensors));
  copy_side_files(source.folder(), run.folder / "plain");
  const RunResult result = run_finetune(run.recipe({"model.path=" + (run.folder / "plain").string(),
                                                    "model.dag.num_iterations=1", "model.dag.node_size=4"}),
                                        {});
  const Checkpoint after = Checkpoint::open(result.output);
  REQUIRE(after.config().dag->node_size == 4);
  REQUIRE(after.find("model.layers.1.mlp.dag.0.up_proj.weight") != nullptr);
}
