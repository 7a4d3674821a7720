// memory.budget_gb: which layers run again, against every other choice; that none of it changes what a run computes;
// and what is said when nothing helps.
#include "finetune/plan_recompute.h"

#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "finetune/flops.h"
#include "finetune/plan.h"
#include "finetune/run.h"
#include "finetune/run_data.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

using Words = std::vector<std::string>;

constexpr std::int64_t kProgram = 1'000'000;

// Five layers, so that there is something to choose from: of one kind, or of two in turn.
struct DeepRun : TinyRun {
  DeepRun() : TinyRun("steps: 4\n") {
    ModelConfig config = tiny_folder_config();
    config.num_hidden_layers = 5;
    write_tiny_folder(folder / "equal", config);
    config.base_model_type = "qwen2_moe";
    config.intermediate_size = 40;
    config.qkv_bias = true;
    config.moe->shared_expert_intermediate_size = 10;
    config.moe->shared_expert_gate = true;
    config.moe->mlp_only_layers = {0, 3};
    write_tiny_folder(folder / "mixed", config);
  }
  Words settings(const std::string& model, const Words& more = {}) const {
    Words words{"model.path=" + (folder / model).string(), "batch.tokens=4096", "batch.micro_batch_tokens=4096",
                "data.valid=[]"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

/// A recipe with its account, and what a set of layers comes to there.
struct Costs {
  Recipe recipe;
  RunSetup setup;
  MemoryAccount account;
  std::vector<double> flops;
  explicit Costs(const Recipe& from)
      : recipe(from),
        setup(prepare_run(recipe)),
        account(recipe, setup, largest_micro_batches(recipe, 0), kProgram),
        flops(recompute_flops(setup)) {}
  std::int64_t bytes(const std::vector<bool>& marked) const {
    const MemoryPlan plan = account.plan(LayersToRecompute(marked));
    return plan.total() + memory_margin(setup, plan);
  }
  /// Whether no layer of the set could be kept.
  bool has_none_to_spare(std::vector<bool> marked, double budget_gb) const {
    for (std::size_t n = 0; n < marked.size(); ++n) {
      if (!marked[n]) continue;
      marked[n] = false;
      if (static_cast<double>(bytes(marked)) <= budget_gb * 1e9) return false;
      marked[n] = true;
    }
    return true;
  }
  double flops_of(const std::vector<bool>& marked) const {
    double sum = 0;
    for (std::size_t n = 0; n < flops.size(); ++n) sum += marked[n] ? flops[n] : 0;
    return sum;
  }
  std::vector<bool> choice(double budget_gb) {
    recipe.memory = Recipe::Memory{budget_gb};
    const RecomputeChoice choice = choose_recompute(recipe, setup, 0, kProgram);
    std::vector<bool> marked(flops.size());
    for (const std::int64_t n : choice.layers) marked[static_cast<std::size_t>(n)] = true;
    REQUIRE(choice.most_bytes == bytes(marked));
    return marked;
  }
  std::vector<bool> subset(std::size_t bits) const {
    std::vector<bool> marked;
    for (std::size_t n = 0; n < flops.size(); ++n) marked.push_back((bits >> n & 1) == 1);
    return marked;
  }
  /// The fewest operations with which any set of layers stays within so many bytes.
  double fewest(std::int64_t budget) const {
    double least = INFINITY;
    for (std::size_t bits = 0; bits < std::size_t{1} << flops.size(); ++bits) {
      if (bytes(subset(bits)) <= budget) least = std::min(least, flops_of(subset(bits)));
    }
    return least;
  }
};

// Budgets from that of a run that keeps nothing to that of one that keeps all.
std::vector<double> budgets(const Costs& costs) {
  const std::vector<bool> none(costs.flops.size(), false), all(costs.flops.size(), true);
  const double low = static_cast<double>(costs.bytes(all)), high = static_cast<double>(costs.bytes(none));
  std::vector<double> result;
  for (int i = 0; i <= 20; ++i) result.push_back((low + (high - low) * i / 20 + 1) / 1e9);
  return result;
}

}  // namespace

TEST_CASE("memory budget: the estimate stays within it, with the fewest operations, but for one layer", "[plan]") {
  const DeepRun run;
  for (const std::string model : {"equal", "mixed"}) {
    for (const std::string trains : {"trainable=[full]", "trainable=[dag]", "trainable=[attention]",
                                     "trainable=[{group: experts, layers: [2..4]}]", "lora.targets=[attention]"}) {
      for (const std::string dtype : {"dtype=float32", "dtype=bfloat16"}) {
        Costs costs(run.recipe(run.settings(model, {trains, dtype})));
        double before = INFINITY;
        for (const double budget : budgets(costs)) {
          INFO(model << " " << trains << " " << dtype << " " << budget);
          const auto marked = costs.choice(budget);
          REQUIRE(static_cast<double>(costs.bytes(marked)) <= budget * 1e9);
          const double chosen = costs.flops_of(marked);
          const double fewest = costs.fewest(static_cast<std::int64_t>(budget * 1e9));
          const double largest = *std::ranges::max_element(costs.flops),
                       smallest = *std::ranges::min_element(costs.flops);
          // Of unequal layers the last one that is chosen may be larger than what is still missing.
          const double slack = smallest == largest ? 0 : largest;
          REQUIRE(chosen <= Approx(fewest + slack));
          REQUIRE(chosen <= before + slack);
          before = chosen;
          REQUIRE(costs.has_none_to_spare(marked, budget));
        }
        REQUIRE(before == 0);
      }
    }
  }
}

TEST_CASE("memory budget: of equal layers the earliest run again", "[plan]") {
  const DeepRun run;
  Costs costs(run.recipe(run.settings("equal", {"trainable=[full]"})));
  int partly = 0;
  for (const double budget : budgets(costs)) {
    const auto marked = costs.choice(budget);
    REQUIRE(std::ranges::is_sorted(marked, std::greater<>()));
    partly += marked.front() && !marked.back() ? 1 : 0;
  }
  REQUIRE(partly > 5);
  REQUIRE(costs.bytes({true, true, false, false, false}) < costs.bytes({false, false, false, true, true}));
}

TEST_CASE("memory budget: layers that the backward pass does not reach are never among them", "[plan]") {
  const DeepRun run;
  Costs costs(run.recipe(run.settings("equal", {"trainable=[{group: experts, layers: [3, 4]}]"})));
  REQUIRE(costs.flops[2] == 0);
  REQUIRE(costs.flops[3] > 0);
  REQUIRE(costs.bytes({true, true, true, false, false}) == costs.bytes({false, false, false, false, false}));
  costs.recipe.memory.reset();
  costs.recipe.recompute = true;
  const RecomputeChoice all = choose_recompute(costs.recipe, costs.setup, 0, kProgram);
  REQUIRE(all.layers == std::vector<std::int64_t>{3, 4});
  REQUIRE_THAT(recompute_text(costs.recipe, all), Catch::Contains("2 of the 2 layers that it reaches again (3..4)"));
  const RunSetup& setup = costs.setup;
  const double kept = step_flops(setup, {100, 50});
  costs.setup.recompute = true;
  REQUIRE(step_flops(setup, {100, 50}) == Approx(kept + 100 * (costs.flops[3] + costs.flops[4])));
}

TEST_CASE("memory budget: the operations of a layer run again, counted by hand", "[plan]") {
  const DeepRun run;
  Costs costs(run.recipe(run.settings("mixed", {"trainable=[full]"})));
  // D = 16: q and o 16 x 16, k and v 8 x 16. Dense: three matrices 40 x 16. Experts: the router 4 x 16, two of three
  // matrices 12 x 16, a shared expert of width 10 and its gate; the DAG of G = 6 for each of two nodes down, edge and
  // node (twice 6 x 12), up for both and their sum in the first iteration, for the sum in the second.
  const double attention = 2 * 16 * 16 + 2 * 8 * 16, dense = 3 * 40 * 16,
               experts = 4 * 16 + 2 * 3 * 12 * 16 + 3 * 10 * 16 + 16;
  const double dag = 2 * (2 * (6 * 16 + 2 * 6 * 12)) + (2 + 1) * 16 * 6 + 16 * 6;
  REQUIRE(costs.flops[0] == 2 * (attention + dense));
  REQUIRE(costs.flops[1] == 2 * (attention + experts + dag));
  REQUIRE(costs.flops[3] == costs.flops[0]);
}

TEST_CASE("memory budget: no step of a run has larger micro batches than it counts with", "[plan]") {
  const TinyRun run("steps: 6\n");
  for (const Words& settings : std::vector<Words>{{},
                                                  {"batch.micro_batch_tokens=100"},
                                                  {"batch.sequences=3"},
                                                  {"batch.sequences=1", "data.packing=false"},
                                                  {"data.packing=false"},
                                                  {"data.max_seq_len=40", "batch.micro_batch_tokens=64"},
                                                  {"batch.tokens=16", "data.max_seq_len=60"}}) {
    INFO(join(settings, " "));
    const Recipe recipe = run.recipe(settings);
    const RunPlan plan = make_plan(recipe, {});
    const MicroBatches& found = plan.data.micro_batches;
    const MicroBatches most = largest_micro_batches(recipe, 9);
    REQUIRE(most.largest.tokens >= found.largest.tokens);
    REQUIRE(most.largest.supervised_tokens >= found.largest.supervised_tokens);
    REQUIRE(most.largest.longest_sequence >= found.largest.longest_sequence);
    REQUIRE(most.several_a_step >= found.several_a_step);
    REQUIRE(most.validation_tokens == found.validation_tokens);
    REQUIRE(plan.recompute.most_bytes >= plan.memory.total());
  }
  REQUIRE(largest_micro_batches(run.recipe({"batch.tokens=4096", "batch.micro_batch_tokens=4096"}), 0).largest.tokens ==
          4096);
  REQUIRE_FALSE(largest_micro_batches(run.recipe({"batch.sequences=1", "data.packing=false"}), 0).several_a_step);
}

TEST_CASE("memory budget: one that is too small says what is needed and what would help", "[plan]") {
  const DeepRun run;
  const auto message = [&run](const Words& more) {
    const Recipe recipe = run.recipe(run.settings("equal", more));
    const RunSetup setup = prepare_run(recipe);
    std::string text;
    try {
      choose_recompute(recipe, setup, 0, kProgram);
    } catch (const ConfigError& error) {
      text = error.what();
    }
    return text;
  };
  const std::string full = message({"trainable=[full]", "memory.budget_gb=0.002"});
  REQUIRE_THAT(full, Catch::Contains("a.yaml: memory.budget_gb: found 0.002, but the run needs 0.") &&
                         Catch::Contains(" GB at its fullest (the ") &&
                         Catch::Contains("batch.micro_batch_tokens=512 (") && Catch::Contains("dtype=bfloat16 (") &&
                         Catch::Contains("fewer groups or layers in trainable"));
  REQUIRE_THAT(full, !Catch::Contains("\n"));
  // What does not help is not offered.
  const std::string narrow = message({"trainable=[dag]", "memory.budget_gb=0.001", "dtype=bfloat16",
                                      "batch.micro_batch_tokens=512", "optimizer.name=adamw_8bit"});
  REQUIRE_THAT(narrow, Catch::Contains("but the run needs") && !Catch::Contains("dtype=bfloat16 (") &&
                           !Catch::Contains("micro_batch_tokens=") && !Catch::Contains("adamw_8bit"));
  // Half of them is enough here.
  Costs costs(run.recipe(run.settings("equal", {"trainable=[full]", "batch.micro_batch_tokens=2048"})));
  const double enough = 1.001 * static_cast<double>(costs.bytes(std::vector<bool>(5, true))) / 1e9;
  REQUIRE_THAT(message({"trainable=[full]", str("memory.budget_gb=", enough)}),
               Catch::Contains("batch.micro_batch_tokens=2048 ("));
  // Before anything is trained or written.
  const Recipe recipe = run.recipe(run.settings("equal", {"memory.budget_gb=0.001"}));
  REQUIRE_THROWS_AS(run_finetune(recipe, {}), ConfigError);
  REQUIRE_THROWS_AS(make_plan(recipe, {}), ConfigError);
  REQUIRE_FALSE(std::filesystem::exists(recipe.output_dir));
}

TEST_CASE("memory budget: a run computes the same whatever it is, resumed under another one too", "[finetune]") {
  const DeepRun run;
  const auto recipe = [&run](const std::string& name, double budget_gb) {
    Words words = run.settings("mixed", {"trainable=[full]", "router_aux_loss_coef=0.1", "data.valid_fraction=0.2",
                                         "output_dir=" + (run.folder / name).string()});
    if (budget_gb > 0) words.push_back(str("memory.budget_gb=", budget_gb));
    return run.recipe(words);
  };
  const Costs costs(recipe("none", 0));
  const auto all = budgets(costs);
  const auto run_with = [&](const std::string& name, double budget_gb, RunOptions options = {}) {
    options.program_bytes = kProgram;
    return run_finetune(recipe(name, budget_gb), options);
  };
  run_with("kept", 0);
  for (const std::size_t i : {4, 9, 14}) {
    const std::string name = str("budget", i);
    run_with(name, all[i]);
    REQUIRE(metrics_of(run.folder / name) == metrics_of(run.folder / "kept"));
    REQUIRE(changed_tensors(run.folder / "kept" / "final", run.folder / name / "final").empty());
  }
  RunOptions stops;
  stops.should_stop = [steps = 0]() mutable { return ++steps == 2; };
  run_with("parts", all[3], stops);
  run_with("parts", all[12], {.resume = true});
  REQUIRE(metrics_of(run.folder / "parts") == metrics_of(run.folder / "kept"));
  REQUIRE(changed_tensors(run.folder / "kept" / "final", run.folder / "parts" / "final").empty());
}

TEST_CASE("memory budget: the plan says the choice and its cost", "[plan]") {
  const DeepRun run;
  const RunPlan none = make_plan(run.recipe(run.settings("equal", {"trainable=[full]"})), {});
  REQUIRE(none.recompute_text.empty());
  REQUIRE_THAT(plan_text(none, false), !Catch::Contains("backward pass runs"));
  const RunPlan large = make_plan(run.recipe(run.settings("equal", {"memory.budget_gb=100"})), {});
  REQUIRE_THAT(plan_text(large, false),
               Catch::Contains("memory.budget_gb 100: the backward pass runs 0 of 5 layers again; at most "));
  REQUIRE_THAT(plan_text(large, false), Catch::Contains("0.0 % more operations a step"));
  const RunPlan again = make_plan(run.recipe(run.settings("equal", {"trainable=[full]", "recompute=true"})), {});
  REQUIRE_THAT(plan_text(again, false),
               Catch::Contains("recompute: the backward pass runs 5 of 5 layers again (0..4); at most "));
  const Json json = plan_json(again);
  REQUIRE(json["recompute"]["layers"].size() == 5);
  REQUIRE(json["recompute"]["layers_reached"] == 5);
  REQUIRE(json["recompute"]["most_bytes"] == again.recompute.most_bytes);
  REQUIRE(json["recompute"]["added_flops_share"].get<double>() ==
          Approx(again.time.flops_per_step / none.time.flops_per_step - 1));
  // Forward, and backward twice that, for every product but those with the head's matrix: a third more, less its part.
  REQUIRE(json["recompute"]["added_flops_share"].get<double>() < 1.0 / 3);
  REQUIRE(json["recompute"]["added_flops_share"].get<double>() > 0.2);
}
