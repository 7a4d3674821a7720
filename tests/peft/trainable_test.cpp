#include "peft/trainable.h"

#include <algorithm>

#include "base/error.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

const std::vector<std::string> kNames{"model.embed_tokens.weight",
                                      "model.layers.0.input_layernorm.weight",
                                      "model.layers.0.self_attn.q_proj.weight",
                                      "model.layers.0.mlp.gate.weight",
                                      "model.layers.0.mlp.experts.0.up_proj.weight",
                                      "model.layers.0.mlp.dag.0.norm.weight",
                                      "model.layers.0.mlp.dag.0.up_proj.weight",
                                      "model.layers.1.mlp.dag.0.up_proj.weight",
                                      "model.norm.weight"};

std::vector<std::string> chosen_by(const std::vector<TrainableRule>& rules) {
  const auto selection = select_trainable(rules, kNames);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (selection.is_trainable(i)) names.push_back(kNames[i]);
  }
  return names;
}

std::vector<std::string> chosen(const std::vector<std::string>& patterns) {
  std::vector<TrainableRule> rules;
  for (const auto& pattern : patterns) rules.push_back({pattern, "a.yaml:8:12"});
  return chosen_by(rules);
}

}  // namespace

TEST_CASE("trainable: a group is exactly its parameters, and the DAG's norm belongs to the DAG", "[peft]") {
  REQUIRE(chosen({"dag"}) == std::vector<std::string>{kNames[5], kNames[6], kNames[7]});
  REQUIRE(chosen({"norms"}) == std::vector<std::string>{kNames[1], kNames[8]});
  REQUIRE(chosen({"full"}) == kNames);
}

TEST_CASE("trainable: parts that only some families have belong to the group of their kind", "[peft]") {
  const std::string layer = "model.layers.0.";
  REQUIRE(parameter_group(layer + "self_attn.q_norm.weight") == "norms");
  REQUIRE(parameter_group(layer + "self_attn.kv_a_layernorm.weight") == "norms");
  REQUIRE(parameter_group(layer + "self_attn.q_proj.bias") == "attention");
  REQUIRE(parameter_group(layer + "self_attn.kv_a_proj_with_mqa.weight") == "attention");
  REQUIRE(parameter_group(layer + "mlp.shared_expert.up_proj.weight") == "shared_experts");
  REQUIRE(parameter_group(layer + "mlp.shared_expert_gate.weight") == "shared_experts");
  REQUIRE(parameter_group(layer + "mlp.down_proj.weight") == "mlp");
}

TEST_CASE("trainable: the last matching rule wins", "[peft]") {
  REQUIRE(chosen({"dag", "!model.layers.0.*"}) == std::vector<std::string>{kNames[7]});
  REQUIRE(chosen({"!dag", "dag"}).size() == 3);
}

TEST_CASE("trainable: a rule that matches nothing is an error with place and nearest name", "[peft]") {
  REQUIRE_THROWS_WITH(chosen({"dga"}),
                      "a.yaml:8:12: trainable: 'dga' is no group and matches no parameter; did you mean 'dag'?");
  REQUIRE_THROWS_WITH(chosen({"dag", "shared_experts"}),
                      Catch::Contains("'shared_experts' is a group without parameters in this model"));
}

TEST_CASE("trainable: no rule trains a router bias", "[peft]") {
  const std::string bias = "model.layers.0.mlp.gate.e_score_correction_bias";
  const std::vector<std::string> names{"model.layers.0.mlp.gate.weight", bias};
  REQUIRE(parameter_group(bias) == "router_bias");
  for (const char* pattern : {"full", "router", "*gate*"}) {
    const auto selection = select_trainable({{pattern, "a.yaml:8:12"}}, names);
    REQUIRE(selection.is_trainable(0));
    REQUIRE_FALSE(selection.is_trainable(1));
  }
  for (const char* pattern : {"router_bias", "*_bias"})
    REQUIRE_THROWS_WITH(select_trainable({{pattern, "a.yaml:8:12"}}, names), Catch::Contains("matches no parameter"));
}

TEST_CASE("trainable: a policy that freezes everything is an error", "[peft]") {
  REQUIRE_THROWS_AS(chosen({"dag", "!full"}), ConfigError);
}

TEST_CASE("trainable: a rule can be about some layers only", "[peft]") {
  REQUIRE(chosen_by({{"dag", "a.yaml:8:12", {{1, 1}}}}) == std::vector<std::string>{kNames[7]});
  REQUIRE(chosen_by({{"dag", "a.yaml:8:12", {{0, 1}}}}).size() == 3);
  // What lies outside the layers is in none of them.
  REQUIRE(chosen_by({{"norms", "a.yaml:8:12", {{0, 1}}}}) == std::vector<std::string>{kNames[1]});
  REQUIRE_THROWS_WITH(chosen_by({{"dag", "a.yaml:8:12", {{1, 2}}}}),
                      "a.yaml:8:12: layers: found 1..2; the model has layers 0 to 1");
  REQUIRE_THROWS_WITH(chosen_by({{"router", "a.yaml:8:12", {{1, 1}}}}),
                      "a.yaml:8:12: trainable: 'router' has no parameter in these layers");
}

TEST_CASE("trainable: the rule that decides is known, and one that decides nothing is named", "[peft]") {
  const auto selection = select_trainable({{"dag", "a"}, {"experts", "b"}, {"full", "c", {{1, 1}}}}, kNames);
  REQUIRE(selection.rule_of[4] == 1);
  REQUIRE(selection.rule_of[6] == 0);
  REQUIRE(selection.rule_of[7] == 2);
  REQUIRE(selection.warnings.empty());
  const auto covered = select_trainable({{"dag", "a"}, {"full", "b"}}, kNames);
  REQUIRE(covered.warnings ==
          std::vector<std::string>{"a: trainable: 'dag' has no effect: later rules decide for everything it matches"});
}

TEST_CASE("trainable: layer ranges are one number or two with dots between", "[peft]") {
  REQUIRE(parse_layer_range("8")->last == 8);
  REQUIRE(parse_layer_range("8..15")->first == 8);
  for (const char* text : {"", "x", "8..", "..8", "15..8", "-1", "8-15", "8...15", "8.5"})
    REQUIRE_FALSE(parse_layer_range(text).has_value());
}
