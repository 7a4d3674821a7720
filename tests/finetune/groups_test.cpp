// What a rule names trains, and nothing else: on a model that has every group.
#include "finetune/group_table.h"
#include "finetune/run.h"
#include "peft/trainable.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// Qwen2-MoE with a DAG: a dense first layer, shared experts, biases, a head of its own.
ModelConfig every_group_config() {
  ModelConfig config = tiny_folder_config();
  config.base_model_type = "qwen2_moe";
  config.num_hidden_layers = 3;
  config.intermediate_size = 20;
  config.qkv_bias = true;
  config.tie_word_embeddings = false;
  config.moe->shared_expert_intermediate_size = 10;
  config.moe->shared_expert_gate = true;
  config.moe->mlp_only_layers = {0};
  return config;
}

struct EveryGroupRun : TinyRun {
  EveryGroupRun() : TinyRun("steps: 5\n") { write_tiny_folder(folder / "every", every_group_config()); }
  /// Names of the tensors that five steps of a rule changed.
  std::vector<std::string> changed_by(const std::string& rule, const std::string& name) const {
    const RunResult result =
        run_finetune(into(name, {"model.path=" + (folder / "every").string(), "trainable=[" + rule + "]"}), {});
    return changed_tensors(folder / "every", result.output);
  }
};

}  // namespace

TEST_CASE("groups: after five steps only the named group differs from the source", "[finetune]") {
  const EveryGroupRun run;
  for (const auto& group : parameter_groups()) {
    INFO(group);
    const auto changed = run.changed_by(group, "group_" + group);
    REQUIRE_FALSE(changed.empty());
    for (const auto& name : changed) {
      INFO(name);
      REQUIRE(parameter_group(name) == group);
    }
  }
}

TEST_CASE("groups: full changes all of them", "[finetune]") {
  const EveryGroupRun run;
  std::set<std::string> groups;
  for (const auto& name : run.changed_by("full", "full")) groups.insert(parameter_group(name));
  REQUIRE(groups.size() == parameter_groups().size());
}

TEST_CASE("groups: a rule with layers changes these layers only", "[finetune]") {
  const EveryGroupRun run;
  const auto changed = run.changed_by("{group: attention, layers: [1..2]}", "layers");
  REQUIRE(changed.size() == 2 * 7);  // four matrices and three biases a layer
  for (const auto& name : changed) REQUIRE(name.find("model.layers.0.") == std::string::npos);
}

TEST_CASE("groups: each rule has its own learning rate and weight decay", "[finetune]") {
  const EveryGroupRun run;
  const std::string rules =
      "trainable=[{group: dag, lr: 0.01}, {group: router, lr: 0.001, weight_decay: 0.3}, {group: norms, layers: [1], "
      "lr: "
      "0.0}, norms]";
  const RunSetup setup = prepare_run(run.recipe({"model.path=" + (run.folder / "every").string(), rules}));
  for (const GroupRow& row : group_rows(setup)) {
    if (row.group == "dag") REQUIRE((row.min_lr == 0.01 && row.max_lr == 0.01));
    if (row.group == "router") REQUIRE((row.max_lr == 0.001 && row.max_weight_decay == 0.3));
    if (row.group == "norms") REQUIRE(row.min_lr == 0.02);  // the last rule decides for all of them
    if (row.group == "experts") REQUIRE(row.num_trainable == 0);
  }
  REQUIRE(setup.warnings.size() == 1);
  REQUIRE_THAT(setup.warnings[0], Catch::Contains("'norms' has no effect: later rules decide"));
  // A rate of zero really leaves its parameters alone.
  for (const auto& name : run.changed_by("dag, {group: router, lr: 0.0}", "zero"))
    REQUIRE(parameter_group(name) == "dag");
  // The optimizer's own rate may be zero when the rules have theirs.
  const RunResult result = run_finetune(run.into("own_rate", {"model.path=" + (run.folder / "every").string(),
                                                              "optimizer.lr=0", "trainable=[{group: dag, lr: 0.02}]"}),
                                        {});
  REQUIRE_FALSE(changed_tensors(run.folder / "every", result.output).empty());
}

TEST_CASE("groups: the router's bias moves with the loads and is saved, though no rule names it", "[finetune]") {
  const EveryGroupRun run;
  const RunResult result = run_finetune(
      run.into("bias", {"model.path=" + (run.folder / "every").string(), "router_bias_update_rate=0.01"}), {});
  const Checkpoint after = Checkpoint::open(result.output);
  REQUIRE(after.config().moe->router_bias);
  REQUIRE(after.tensor("model.layers.1.mlp.gate.e_score_correction_bias").abs().max().item<float>() > 0.005F);
  // Stopped and resumed, it goes on from where it was.
  int steps = 0;
  const Recipe parts =
      run.into("parts", {"model.path=" + (run.folder / "every").string(), "router_bias_update_rate=0.01"});
  run_finetune(parts, {.should_stop = [&steps] { return ++steps == 2; }});
  run_finetune(parts, {.resume = true});
  REQUIRE(changed_tensors(result.output, run.folder / "parts" / "final").empty());
  REQUIRE(metrics_of(run.folder / "parts") == metrics_of(run.folder / "bias"));
}
