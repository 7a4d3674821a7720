#include "peft/adapter_spec.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;
using Catch::Matchers::Contains;

namespace {

std::vector<AdapterTarget> targets_of(const std::string& family) {
  return adapter_targets(parameter_shapes(read_model_config(golden("families/" + family))));
}

std::vector<std::string> modules(const std::vector<AdapterPart>& parts) {
  std::vector<std::string> names;
  for (const AdapterPart& part : parts) names.push_back(part.target.module);
  return names;
}

std::vector<AdapterPart> select(const std::vector<std::string>& patterns, const std::string& family = "mixtral") {
  std::vector<AdapterRule> rules;
  for (const std::string& pattern : patterns) rules.push_back({pattern, "r.yaml:1:1: lora.targets"});
  return select_targets(rules, {}, targets_of(family));
}

const AdapterTarget& find(const std::vector<AdapterTarget>& targets, const std::string& module) {
  const auto found = std::ranges::find(targets, module, &AdapterTarget::module);
  REQUIRE(found != targets.end());
  return *found;
}

void require_target(const AdapterTarget& target, const std::string& group, std::int64_t O, std::int64_t I,
                    std::int64_t num_experts) {
  INFO(target.module);
  CHECK(target.group == group);
  CHECK(target.O == O);
  CHECK(target.I == I);
  CHECK(target.num_experts == num_experts);
}

}  // namespace

TEST_CASE("adapter targets: a dense model has its linear layers, no norm and no embedding", "[peft]") {
  const auto targets = targets_of("llama_linear");
  REQUIRE(targets.size() == 2 * 7 + 1);
  require_target(find(targets, "model.layers.0.self_attn.q_proj"), "attention", 16, 16, 0);
  require_target(find(targets, "model.layers.1.self_attn.k_proj"), "attention", 8, 16, 0);
  require_target(find(targets, "model.layers.1.mlp.gate_proj"), "mlp", 20, 16, 0);
  require_target(find(targets, "model.layers.1.mlp.down_proj"), "mlp", 16, 20, 0);
  require_target(find(targets, "lm_head"), "lm_head", 41, 16, 0);
  // A tied head is the embedding.
  REQUIRE(targets_of("llama_bias").size() == 2 * 7);
}

TEST_CASE("adapter targets: a layer's experts are two targets", "[peft]") {
  const auto targets = targets_of("mixtral");
  REQUIRE(targets.size() == 2 * (4 + 1 + 2) + 1);
  require_target(find(targets, "model.layers.0.mlp.experts.gate_up_proj"), "experts", 40, 16, 4);
  require_target(find(targets, "model.layers.1.mlp.experts.down_proj"), "experts", 16, 20, 4);
  require_target(find(targets, "model.layers.1.mlp.gate"), "router", 4, 16, 0);
}

TEST_CASE("adapter targets: shared experts, their gate, and dense layers between", "[peft]") {
  const auto targets = targets_of("qwen2_moe");
  require_target(find(targets, "model.layers.0.mlp.shared_expert.down_proj"), "shared_experts", 16, 12, 0);
  require_target(find(targets, "model.layers.0.mlp.shared_expert_gate"), "shared_experts", 1, 16, 0);
  require_target(find(targets, "model.layers.1.mlp.up_proj"), "mlp", 20, 16, 0);
  require_target(find(targets, "model.layers.2.mlp.experts.gate_up_proj"), "experts", 16, 16, 4);
}

TEST_CASE("adapter targets: the DAG's matrices are none", "[peft]") {
  const ModelConfig with_dag = tiny_config(true), without = tiny_config(false);
  std::vector<std::string> with, plain;
  for (const AdapterTarget& target : adapter_targets(parameter_shapes(with_dag))) with.push_back(target.module);
  for (const AdapterTarget& target : adapter_targets(parameter_shapes(without))) plain.push_back(target.module);
  REQUIRE(with == plain);
}

TEST_CASE("adapter targets: every family's targets are the places where a decoder carries adapters", "[peft]") {
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    INFO(entry.path());
    Decoder model(read_model_config(entry.path()));
    std::set<std::string> linears, found;
    for (const auto& [name, linear] : model.linears()) linears.insert(name);
    for (const AdapterTarget& target : adapter_targets(parameter_shapes(model.config))) {
      if (target.num_experts == 0) found.insert(target.module);
    }
    REQUIRE(found == linears);
  }
}

TEST_CASE("select_targets: groups, names, their ends after a dot, and globs", "[peft]") {
  REQUIRE(modules(select({"router"})) ==
          std::vector<std::string>{"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"});
  REQUIRE(select({"attention"}).size() == 8);
  REQUIRE(select({"experts"}).size() == 4);
  REQUIRE(modules(select({"down_proj"})) ==
          std::vector<std::string>{"model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"});
  REQUIRE(modules(select({"model.layers.1.self_attn.v_proj"})) ==
          std::vector<std::string>{"model.layers.1.self_attn.v_proj"});
  REQUIRE(modules(select({"self_attn.v_proj"})).size() == 2);
  REQUIRE(modules(select({"model.layers.[0-0].*_proj"})) ==
          std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj",
                                   "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj",
                                   "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"});
  REQUIRE(select({"mlp"}, "qwen2_moe").size() == 3);
  REQUIRE(select({"down_proj"}, "qwen2_moe").size() == 2 + 2 + 1);
  REQUIRE(select({"shared_experts"}, "deepseek_v2").size() == 3);
}

TEST_CASE("select_targets: the order is the model's, a later rule counts, nothing is taken twice", "[peft]") {
  const auto parts =
      select_targets({{"attention", "a", 4, 8.0}, {"q_proj", "b", 2, 1.0}},
                     {{"k_proj", "c", 5, 3.0}, {"model.layers.1.*", "d", 6, 7.0}}, targets_of("mixtral"));
  REQUIRE(parts.size() == 8);
  const std::vector<std::pair<std::int64_t, double>> expected = {{2, 1.0}, {5, 3.0}, {4, 8.0}, {4, 8.0},
                                                                 {6, 7.0}, {6, 7.0}, {6, 7.0}, {6, 7.0}};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    INFO(parts[i].target.module);
    CHECK(parts[i].rank == expected[i].first);
    CHECK(parts[i].alpha == expected[i].second);
  }
}

TEST_CASE("select_targets: what matches nothing is an error with the nearest name, all at once", "[peft]") {
  try {
    select_targets({{"q_prj", "r.yaml:3:5: lora.targets"}, {"attention", "x"}, {"w_proj", "r.yaml:3:5: lora.targets"}},
                   {{"experts", "r.yaml:4:5: lora.patterns"}}, targets_of("mixtral"));
    FAIL("accepted");
  } catch (const ConfigError& error) {
    REQUIRE(error.exit_code() == ExitCode::kConfig);
    REQUIRE(error.issues().size() == 3);
    REQUIRE_THAT(error.issues()[0], Contains("r.yaml:3:5: lora.targets: 'q_prj' matches no linear layer of this model; "
                                             "did you mean 'q_proj'"));
    REQUIRE_THAT(error.issues()[0], Contains("known: "));
    REQUIRE_THAT(error.issues()[2],
                 Contains("r.yaml:4:5: lora.patterns: 'experts' matches nothing that the adapter changes"));
    for (const std::string& issue : error.issues()) REQUIRE(issue.find('\n') == std::string::npos);
  }
  // An end of a name counts only after a dot.
  REQUIRE_THROWS_AS(select({"proj"}), ConfigError);
  REQUIRE_THROWS_AS(select({"shared_experts"}), ConfigError);
  REQUIRE_THROWS_AS(select({"embed_tokens"}), ConfigError);
}

TEST_CASE("adapter spec: the scale is alpha / R, or alpha / sqrt(R)", "[peft]") {
  const AdapterPart part{.target = {}, .rank = 9, .alpha = 18.0};
  REQUIRE(AdapterSpec{}.scale_of(part) == 2.0);
  REQUIRE(AdapterSpec{.use_rslora = true}.scale_of(part) == 6.0);
}

TEST_CASE("adapter spec: names and shapes of what it adds", "[peft]") {
  AdapterSpec spec;
  spec.parts = select_targets(
      {{"model.layers.0.self_attn.k_proj", "", 3, 6.0}, {"model.layers.1.mlp.experts.gate_up_proj", "", 5, 6.0}}, {},
      targets_of("mixtral"));
  using Shape = std::vector<std::int64_t>;
  REQUIRE(spec.parameters() == NamedShapes{{"model.layers.0.self_attn.k_proj.lora_A.weight", Shape{3, 16}},
                                           {"model.layers.0.self_attn.k_proj.lora_B.weight", Shape{8, 3}},
                                           {"model.layers.1.mlp.experts.gate_up_proj.lora_A.weight", Shape{4, 5, 16}},
                                           {"model.layers.1.mlp.experts.gate_up_proj.lora_B.weight", Shape{4, 40, 5}}});
  spec.kind = AdapterKind::kDora;
  spec.parts.pop_back();
  REQUIRE(spec.parameters().back() ==
          std::pair<std::string, Shape>{"model.layers.0.self_attn.k_proj.lora_magnitude_vector", Shape{8}});
}
