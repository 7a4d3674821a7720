#include "finetune/run.h"

#include <signal.h>
#include <sys/wait.h>

#include <thread>

#include "base/error.h"
#include "finetune/run_folder.h"
#include "finetune/trainer.h"
#include "kernels/ops.h"
#include "model/families.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

struct Run {
  TemporaryFolder folder;
  explicit Run(const std::string& more = "steps: 6\n") {
    write_tiny_folder(folder / "model");
    write_records(folder / "train.jsonl", 40);
    write_records(folder / "valid.jsonl", 9);
    write_text(folder / "a.yaml", recipe_text(folder.path(), more));
  }
  Recipe recipe(const std::vector<std::string>& overrides = {}) const {
    return load_recipe(folder / "a.yaml", overrides);
  }
};

// Losses and norms by step, without times.
std::vector<std::string> metrics_of(const std::filesystem::path& run_folder) {
  std::vector<std::string> lines;
  std::istringstream stream(read_text(run_folder / "metrics.jsonl"));
  for (std::string line; std::getline(stream, line);) {
    Json entry = Json::parse(line);
    for (const char* key : {"seconds", "tokens_per_second", "peak_rss_bytes"}) entry.erase(key);
    lines.push_back(entry.dump());
  }
  return lines;
}

bool same_bytes(const Checkpoint& a, const Checkpoint& b, const std::string& name) {
  const auto x = a.bytes(name), y = b.bytes(name);
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

}  // namespace

TEST_CASE("run: only the DAG changes, everything else is bit-identical, and the loss falls", "[finetune]") {
  const Run run("steps: 30\n");
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
  const ModelConfig config = tiny_config();
  std::vector<bool> trainable;
  for (const auto& [name, shape] : parameter_shapes(config))
    trainable.push_back(name.find(".dag.") != std::string::npos);
  const auto rows = group_rows(config, trainable);
  for (const GroupRow& row : rows) REQUIRE((row.num_trainable > 0) == (row.group == "dag"));
  REQUIRE(rows.front().num_trainable == 2 * num_dag_parameters(*config.dag, config.hidden_size));
}

TEST_CASE("run: a run repeats to the digit", "[finetune]") {
  const Run run;
  run_finetune(run.recipe({"output_dir=" + (run.folder / "one").string()}), {});
  run_finetune(run.recipe({"output_dir=" + (run.folder / "two").string()}), {});
  REQUIRE(metrics_of(run.folder / "one") == metrics_of(run.folder / "two"));
}

TEST_CASE("run: stopping and resuming gives the same steps and weights, bit for bit", "[finetune]") {
  const Run run;
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

TEST_CASE("run: micro batches of any size give the gradient of the whole step", "[finetune]") {
  const Run run;
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
  const Run run("steps: 6\ncheckpoint: {every_steps: 1, keep_last: 2}\n");
  run_finetune(run.recipe(), {});
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run" / "checkpoint-3"));
  REQUIRE(newest_checkpoint(run.folder / "run")->step == 5);
  REQUIRE(std::filesystem::exists(run.folder / "run" / "checkpoint-4"));
}

TEST_CASE("run: kill -9 at any moment leaves the last checkpoint loadable", "[finetune]") {
  // A child saves after every step and is killed without warning; whatever checkpoint is there must open.
  const Run run("steps: 200\ncheckpoint: {every_steps: 1, keep_last: 2}\n");
  for (const int milliseconds : {700, 1100, 1700}) {
    const std::string program = std::string(DAGMOE_BINARY_DIR) + "/dagmoe";
    if (!std::filesystem::exists(program)) DAGMOE_SKIP("the dagmoe program is not built");
    const pid_t child = fork();
    if (child == 0) {
      const std::string recipe = (run.folder / "a.yaml").string();
      if (freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
      execl(program.c_str(), "dagmoe", "finetune", recipe.c_str(), "--resume", static_cast<char*>(nullptr));
      _exit(1);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto found = newest_checkpoint(run.folder / "run");
    if (!found) continue;
    INFO("killed after " << milliseconds << " ms at step " << found->step);
    REQUIRE_NOTHROW(load_decoder(Checkpoint::open(found->path), {}));
    REQUIRE_NOTHROW(SafetensorsFile::open(found->path / "trainer_state.safetensors"));
  }
}

TEST_CASE("run: a second run into the same folder is refused", "[finetune]") {
  const Run run("steps: 1\n");
  run_finetune(run.recipe(), {});
  REQUIRE_THROWS_WITH(run_finetune(run.recipe(), {}), Catch::Contains("holds a run already; add --resume"));
}

TEST_CASE("run: a loss that is not finite stops before any weight changes", "[finetune]") {
  const Run run("steps: 50\n");
  try {
    run_finetune(run.recipe({"optimizer.lr=1000", "max_grad_norm=0"}), {});
    FAIL("expected NumericsError");
  } catch (const NumericsError& error) {
    REQUIRE_THAT(error.what(), Catch::Contains("no weight was changed"));
  }
}

TEST_CASE("run: a dry run writes nothing", "[finetune]") {
  const Run run;
  run_finetune(run.recipe(), {.dry_run = true});
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run"));
}

TEST_CASE("run: a missing data file is named with the recipe that lists it", "[finetune]") {
  const Run run;
  std::filesystem::remove(run.folder / "train.jsonl");
  REQUIRE_THROWS_WITH(run_finetune(run.recipe(), {}),
                      Catch::Contains("train.jsonl: no such file; it is listed under data in"));
  REQUIRE_FALSE(std::filesystem::exists(run.folder / "run"));
}

TEST_CASE("run: a DAG can be added to a MoE that has none", "[finetune]") {
  const Run run("steps: 2\n");
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
