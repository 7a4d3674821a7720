#include "peft/esft.h"

#include "base/error.h"
#include "base/text.h"
#include "peft/trainable.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

using namespace dagmoe;
using Ids = std::vector<std::int64_t>;

namespace {

// Four tokens, K = 2, four experts, worked by hand:
//   token   experts   weights       tokens of each expert: 4 2 1 1, of 4 x 2 = 8 assignments
//   0       0 1       0.6 0.4       sums of weights:
//   1       0 2       0.7 0.3         e0: 0.6 + 0.7 + 0.5 + 0.1 = 1.9    e1: 0.4 + 0.5 = 0.9
//   2       0 1       0.5 0.5         e2: 0.3                           e3: 0.9
//   3       3 0       0.9 0.1
RoutingTotals hand_made() {
  return {.num_tokens = 4,
          .experts_per_token = 2,
          .layers = {1},
          .counts_LE = {{4, 2, 1, 1}},
          .gate_sums_LE = {{1.9, 0.9, 0.3, 0.9}}};
}

// A dense layer, one with three experts and a shared one, one with two.
std::vector<std::string> model_names(bool with_shared = true) {
  std::vector<std::string> names{"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"};
  const auto add = [&names](const std::string& module) {
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) names.push_back(str(module, ".", part, ".weight"));
  };
  names.emplace_back("model.layers.1.mlp.gate.weight");
  for (int e = 0; e < 3; ++e) add(str("model.layers.1.mlp.experts.", e));
  if (with_shared) add("model.layers.1.mlp.shared_experts");
  names.emplace_back("model.layers.1.mlp.dag.0.up_proj.weight");
  names.emplace_back("model.layers.2.mlp.gate.weight");
  names.emplace_back("model.layers.2.mlp.gate.e_score_correction_bias");
  for (int e = 0; e < 2; ++e) add(str("model.layers.2.mlp.experts.", e));
  names.emplace_back("lm_head.weight");
  return names;
}

EsftConfig parse(std::string_view text) { return parse_esft_config(text, "a.json"); }

std::string parse_problems(std::string_view text) {
  try {
    parse(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

std::string fit_problems(const EsftConfig& config, const std::vector<std::string>& names = model_names()) {
  try {
    esft_parameters(config, names, "a.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("esft: token scores sum to 1 over a layer, gate scores to the mean chosen mass", "[peft]") {
  REQUIRE(esft_scores(hand_made(), EsftScore::kToken)[0] == std::vector<double>{0.5, 0.25, 0.125, 0.125});
  const auto gate_E = esft_scores(hand_made(), EsftScore::kGate)[0];
  const std::vector<double> expected{0.475, 0.225, 0.075, 0.225};
  for (std::size_t e = 0; e < 4; ++e) REQUIRE(gate_E[e] == Approx(expected[e]).epsilon(1e-12));
  REQUIRE_THROWS_AS(esft_scores({}, EsftScore::kToken), InternalError);
}

TEST_CASE("esft: experts are taken by descending score until their sum reaches top_p", "[peft]") {
  const auto selected = [](EsftScore score, double top_p) {
    return select_experts(hand_made(), score, top_p).experts.at(1);
  };
  REQUIRE(selected(EsftScore::kToken, 0.2) == Ids{0});
  REQUIRE(selected(EsftScore::kToken, 0.5) == Ids{0});  // reached exactly
  REQUIRE(selected(EsftScore::kToken, 0.51) == Ids{0, 1});
  REQUIRE(selected(EsftScore::kToken, 0.8) == Ids{0, 1, 2});  // 2 and 3 are equal: the lower index first
  REQUIRE(selected(EsftScore::kToken, 1.0) == Ids{0, 1, 2, 3});
  REQUIRE(selected(EsftScore::kGate, 0.1) == Ids{0});
  REQUIRE(selected(EsftScore::kGate, 0.5) == Ids{0, 1});  // 0.475 + 0.225; 1 and 3 are equal
  REQUIRE(selected(EsftScore::kGate, 0.9) == Ids{0, 1, 3});
  // The scores may sum to less than top_p.
  REQUIRE(select_experts(std::vector<double>{0.1, 0.2, 0.0}, 0.5) == Ids{1, 0, 2});
  // Ten shares of 0.1 add up to a little less than 1.
  REQUIRE(select_experts(std::vector<double>{0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0}, 1.0).size() == 10);
}

TEST_CASE("esft: the published scores give the published selection", "[peft]") {
  // The largest token scores of three layers of DeepSeek-V2-Lite on `law`, and the experts selected there:
  // results/expert_scores/law/summary.json and results/expert_configs/law.json of deepseek-ai/ESFT.
  struct Row {
    std::vector<std::pair<std::size_t, double>> scores;
    Ids selected;
  };
  for (const Row& row : {Row{{{3, .0774}, {29, .0613}, {30, .0432}, {58, .0312}, {19, .0291}}, {3, 29, 30, 58}},
                         Row{{{50, .0771}, {51, .0597}, {54, .0881}, {29, .0338}}, {54, 50, 51}},
                         Row{{{0, .1073}, {29, .0523}, {56, .0497}, {62, .0374}}, {0, 29, 56}}}) {
    std::vector<double> scores_E(64, 0.01);
    for (const auto& [expert, score] : row.scores) scores_E[expert] = score;
    REQUIRE(select_experts(scores_E, default_top_p(EsftScore::kToken)) == row.selected);
  }
}

TEST_CASE("esft: totals of several passes add up", "[peft]") {
  RoutingTotals totals;
  totals += hand_made();
  totals += hand_made();
  REQUIRE(totals.num_tokens == 8);
  REQUIRE(totals.counts_LE[0] == Ids{8, 4, 2, 2});
  REQUIRE(esft_scores(totals, EsftScore::kGate) == esft_scores(hand_made(), EsftScore::kGate));
  RoutingTotals other = hand_made();
  other.layers = {2};
  REQUIRE_THROWS_AS(totals += other, InternalError);
}

TEST_CASE("esft: the reference's file is read and written", "[peft]") {
  const EsftConfig config = parse(
      R"({"experts": {"1": [12, 40, 7], "10": [5], "2": []}, "shared_experts": false, "non_expert_modules": true})");
  REQUIRE(config.experts == std::map<std::int64_t, Ids>{{1, {12, 40, 7}}, {2, {}}, {10, {5}}});
  REQUIRE_FALSE(config.shared_experts);
  REQUIRE(config.non_expert_modules);
  const std::string text = esft_config_text(config);
  REQUIRE(text == R"({"experts":{"1":[12,40,7],"2":[],"10":[5]},"shared_experts":false,"non_expert_modules":true})"
                  "\n");
  const TextFile file("law.json", text);
  REQUIRE(read_esft_config(file.path()) == config);
  REQUIRE(parse(R"({"experts": {"0": [1]}})") == EsftConfig{.experts = {{0, {1}}}});  // the other keys may be absent
}

TEST_CASE("esft: a file that is none lists every problem, a line each", "[peft]") {
  REQUIRE(parse_problems(R"({"expert": {}, "experts": {"x": [], "01": [], "1": [0, 2, 0, -1, "3", 1.5], "2": 7},
                             "shared_experts": 1, "non_expert_modules": null})") ==
          "a.json: unknown key 'expert'; did you mean 'experts'?\n"
          "a.json: experts: found key 'x', expected the number of a layer\n"
          "a.json: experts: found key '01', expected the number of a layer\n"
          "a.json: experts.1: expert 0 is listed twice\n"
          "a.json: experts.1: found '-1', expected the number of an expert, counted from 0\n"
          "a.json: experts.1: found '\"3\"', expected the number of an expert, counted from 0\n"
          "a.json: experts.1: found '1.5', expected the number of an expert, counted from 0\n"
          "a.json: experts.2: found number, expected a list of experts\n"
          "a.json: shared_experts: found number, expected true or false\n"
          "a.json: non_expert_modules: found null, expected true or false");
  REQUIRE(parse_problems("{}") == "a.json: 'experts' is missing; expected {\"LAYER\": [experts]}");
  REQUIRE_THAT(parse_problems("[1]"), Catch::Contains("a.json: found array, expected {\"experts\""));
  REQUIRE_THAT(parse_problems(R"({"experts": {"1": [], "1": []}})"), Catch::Contains("a.json:1:"));
  REQUIRE_THROWS_WITH(read_esft_config("/nowhere/a.json"), Catch::Contains("no such file; esft.experts names it"));
}

TEST_CASE("esft: a selection is exactly its experts' parameters", "[peft]") {
  const auto names = esft_parameters({.experts = {{1, {2}}, {2, {}}}}, model_names(), "a.json");
  REQUIRE(names == std::set<std::string>{"model.layers.1.mlp.experts.2.down_proj.weight",
                                         "model.layers.1.mlp.experts.2.gate_proj.weight",
                                         "model.layers.1.mlp.experts.2.up_proj.weight"});
  const auto shared = esft_parameters({.experts = {{1, {}}, {2, {}}}, .shared_experts = true}, model_names(), "a.json");
  REQUIRE(shared.size() == 3);
  REQUIRE(shared.contains("model.layers.1.mlp.shared_experts.up_proj.weight"));
  const auto others =
      esft_parameters({.experts = {{1, {0}}, {2, {}}}, .non_expert_modules = true}, model_names(), "a.json");
  REQUIRE(others.contains("model.layers.2.mlp.gate.weight"));
  REQUIRE(others.contains("model.layers.1.mlp.dag.0.up_proj.weight"));
  REQUIRE(others.contains("lm_head.weight"));
  REQUIRE(others.contains("model.layers.1.mlp.experts.0.up_proj.weight"));
  REQUIRE_FALSE(others.contains("model.layers.1.mlp.experts.1.up_proj.weight"));
  REQUIRE_FALSE(others.contains("model.layers.1.mlp.shared_experts.up_proj.weight"));
}

TEST_CASE("esft: a file of another model lists every misfit, a line each", "[peft]") {
  REQUIRE(fit_problems({.experts = {{0, {1}}, {1, {2, 3}}, {3, {0}}}, .shared_experts = true}, model_names(false)) ==
          "a.json: experts.0: this layer of the model is dense; leave it out\n"
          "a.json: experts.1: found expert 3; this layer has experts 0 to 2\n"
          "a.json: experts.3: the model has layers 0 to 2\n"
          "a.json: experts: layer 2 has 2 experts and is not listed; add \"2\": [] to train none of them\n"
          "a.json: shared_experts: found true, but the model has no shared expert; set it to false");
  REQUIRE(fit_problems({.experts = {{1, {}}, {2, {}}}}) ==
          "a.json: experts: no expert is listed, so that nothing would train");
}

TEST_CASE("esft: its rule is one among others, and the last one wins", "[peft]") {
  const auto names = model_names();
  const TrainableRule esft{"esft", "a.yaml:8:12", {}, esft_parameters({.experts = {{1, {2}}, {2, {1}}}}, names, "a")};
  const auto trained = [&names](const std::vector<TrainableRule>& rules) {
    const auto selection = select_trainable(rules, names);
    std::set<std::string> result;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (selection.is_trainable(i)) result.insert(names[i]);
    }
    return result;
  };
  REQUIRE(trained({esft}) == esft.names);
  REQUIRE(trained({esft, {"dag", "a.yaml:9:12"}}).size() == esft.names.size() + 1);
  REQUIRE(trained({esft, {"!model.layers.2.*", "a.yaml:9:12"}}).size() == 3);
  // As a rule that freezes: all experts but these. The router's bias trains with none of them.
  TrainableRule frozen = esft;
  frozen.pattern = "!esft";
  REQUIRE(trained({{"experts", "a.yaml:8:12"}, frozen}).size() == 3 * 3);
  TrainableRule all = esft;
  all.names = esft_parameters({.experts = {{1, {}}, {2, {}}}, .non_expert_modules = true}, names, "a");
  REQUIRE_FALSE(trained({all}).contains("model.layers.2.mlp.gate.e_score_correction_bias"));
  // In some layers only, and in one where the file selects nothing.
  TrainableRule first = esft;
  first.layers = {{1, 1}};
  REQUIRE(trained({first}).size() == 3);
  first.layers = {{0, 0}};
  REQUIRE_THROWS_WITH(trained({first}), "a.yaml:8:12: trainable: 'esft' has no parameter in these layers");
  REQUIRE(select_trainable({esft, {"full", "b"}}, names).warnings ==
          std::vector<std::string>{
              "a.yaml:8:12: trainable: 'esft' has no effect: later rules decide for everything it matches"});
}
