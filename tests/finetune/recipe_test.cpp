#include "finetune/recipe.h"

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using dagmoe::testing::TemporaryFolder;
using dagmoe::testing::write_text;

namespace {

const std::string kGood =
    "version: 1\noutput_dir: runs/x\nmodel: {path: models/x}\ntrainable: [dag]\n"
    "data:\n  train:\n    - {path: a.jsonl, format: alpaca, template: alpaca}\n";

Recipe load(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", text);
  return load_recipe(folder / "a.yaml", overrides);
}

}  // namespace

TEST_CASE("recipe: what is not said has the documented default", "[finetune]") {
  const Recipe recipe = load(kGood);
  REQUIRE(recipe.epochs == 1);
  REQUIRE(recipe.batch.tokens == 4096);
  REQUIRE(recipe.dtype == ComputeType::kBFloat16);
  REQUIRE(recipe.optimizer.lr == 2e-5);
}

TEST_CASE("recipe: the written form reads back to the same text", "[finetune]") {
  Recipe recipe = load(kGood, std::vector<std::string>{"optimizer.lr=0.003", "steps=7", "model.dag.num_iterations=3"});
  const std::string text = to_yaml(recipe);
  REQUIRE(to_yaml(load(text)) == text);
  REQUIRE(load(text).optimizer.lr == 0.003);
  REQUIRE(load(text).model.dag->num_iterations == 3);
}

TEST_CASE("recipe: every problem of a file is reported at once with its place", "[finetune]") {
  try {
    load(
        "version: 1\noutput_dir: runs/x\nmodel: {paht: models/x}\ntrainable: [dag]\nsedd: 3\nepochs: 1\nsteps: "
        "2\ndata: {train: []}\n");
    FAIL("expected ConfigError");
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    REQUIRE_THAT(text, Catch::Contains(":3:9: model.paht: unknown key; did you mean 'path'?"));
    REQUIRE_THAT(text, Catch::Contains(":5:1: sedd: unknown key; did you mean 'seed'?"));
    REQUIRE_THAT(text, Catch::Contains("steps: contradicts epochs"));
    REQUIRE_THAT(text, Catch::Contains("nothing was run"));
    REQUIRE(error.issues().size() >= 5);
  }
}

TEST_CASE("recipe: on the command line the later of two equal-meaning settings wins", "[finetune]") {
  const Recipe recipe =
      load(kGood + "epochs: 3\nbatch: {tokens: 100}\n", std::vector<std::string>{"steps=5", "batch.sequences=4"});
  REQUIRE(recipe.steps == 5);
  REQUIRE_FALSE(recipe.epochs.has_value());
  REQUIRE(recipe.batch.sequences == 4);
  REQUIRE_FALSE(recipe.batch.tokens.has_value());
}

TEST_CASE("recipe: a memory budget and recompute exclude each other, and on the command line the later one wins",
          "[finetune]") {
  const std::string budget = kGood + "memory: {budget_gb: 2.5}\n", all = kGood + "recompute: true\n";
  REQUIRE(load(budget).memory->budget_gb == 2.5);
  REQUIRE(load(to_yaml(load(budget))).memory->budget_gb == 2.5);
  REQUIRE_FALSE(load(kGood).memory.has_value());
  REQUIRE_THROWS_WITH(load(budget + "recompute: true\n"),
                      Catch::Contains("memory.budget_gb: contradicts recompute; give one of the two"));
  REQUIRE_NOTHROW(load(budget + "recompute: false\n"));
  const Recipe later = load(all, std::vector<std::string>{"memory.budget_gb=3"});
  REQUIRE(later.memory->budget_gb == 3);
  REQUIRE_FALSE(later.recompute);
  const Recipe other = load(budget, std::vector<std::string>{"recompute=true"});
  REQUIRE(other.recompute);
  REQUIRE_FALSE(other.memory.has_value());
  REQUIRE_THROWS_WITH(load(kGood + "memory: {}\n"), Catch::Contains("memory.budget_gb: required key is missing"));
  REQUIRE_THROWS_WITH(load(kGood + "memory: {budget_gb: 0}\n"), Catch::Contains("memory.budget_gb: "));
  REQUIRE_THROWS_WITH(load(kGood + "memory: {budget: 2}\n"),
                      Catch::Contains("memory.budget: unknown key; known: budget_gb"));
}

TEST_CASE("recipe: an unknown prompt template names the nearest", "[finetune]") {
  REQUIRE_THROWS_WITH(load(kGood, std::vector<std::string>{"data.train.0.template=chatlm"}),
                      Catch::Contains("did you mean 'chatml'?"));
}

TEST_CASE("recipe: a template beside plain texts is refused", "[finetune]") {
  REQUIRE_THROWS_WITH(load(kGood, std::vector<std::string>{"data.train.0.format=text"}),
                      Catch::Contains("data.train.0.template: means nothing for format text"));
  const Recipe recipe = load(kGood, std::vector<std::string>{"data.train.0={path: a.jsonl, format: text}"});
  REQUIRE(recipe.data.train[0].format == RecordFormat::kText);
  REQUIRE_NOTHROW(load(to_yaml(recipe)));
}

TEST_CASE("recipe: settings without effect are named", "[finetune]") {
  Recipe recipe = load(kGood, std::vector<std::string>{"schedule.decay_fraction=0.5", "router_z_loss_coef=0.1"});
  ModelConfig dense = dagmoe::testing::tiny_config();
  dense.moe.reset(), dense.dag.reset();
  const auto lines = settings_without_effect(recipe, dense, false);
  REQUIRE(lines.size() == 2);
  REQUIRE_THAT(lines[0], Catch::Contains("schedule.decay_fraction"));
}
