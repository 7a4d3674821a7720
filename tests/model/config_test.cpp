#include "model/config.h"

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/parameter_count.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

Json llama_json() {
  return parse_json(R"({"model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
                        "num_hidden_layers": 2, "num_attention_heads": 4})",
                    "llama");
}

Json mixtral_json() {
  Json json = llama_json();
  json["model_type"] = "mixtral";
  json["num_local_experts"] = 4;
  json["num_experts_per_tok"] = 2;
  return json;
}

Json dagmoe_json() {
  Json json = mixtral_json();
  json["model_type"] = "dagmoe";
  json["base_model_type"] = "mixtral";
  json["dag"] = parse_json(R"({"num_iterations": 2, "node_size": 8, "node_residual": "none", "norm": "rms_norm",
                               "activation": "silu"})",
                           "dag");
  return json;
}

std::string problems_of(const Json& json) {
  try {
    parse_model_config(json, "config.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "none";
}

Json with(Json json, const std::string& key, Json value) {
  json[key] = std::move(value);
  return json;
}

/// The paper's models (method.md 1.5): D, layers, experts E of width F, K chosen.
ModelConfig paper_model(std::int64_t hidden_size, std::int64_t num_layers, std::int64_t num_experts, std::int64_t width,
                        std::int64_t num_chosen) {
  ModelConfig config;
  config.vocab_size = 128256;
  config.hidden_size = hidden_size;
  config.num_hidden_layers = num_layers;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 8;
  config.head_dim = hidden_size / 32;
  config.moe = MoeConfig{.num_experts = num_experts, .num_experts_per_tok = num_chosen, .moe_intermediate_size = width};
  return config;
}

std::int64_t with_dag(ModelConfig config, std::int64_t node_size, std::int64_t num_iterations) {
  config.dag = DagConfig{.num_iterations = num_iterations, .node_size = node_size};
  return num_parameters(config);
}

std::int64_t elements(const ModelConfig& config) {
  std::int64_t total = 0;
  for (const auto& [name, shape] : parameter_shapes(config)) {
    std::int64_t product = 1;
    for (const std::int64_t size : shape) product *= size;
    total += product;
  }
  return total;
}

}  // namespace

TEST_CASE("config: the paper's small model with coarse experts has the paper's parameter counts", "[model]") {
  const ModelConfig s = paper_model(512, 4, 32, 256, 4);
  CHECK(num_parameters(s) == 184357376);
  CHECK(with_dag(s, 32, 1) == 184506880);
  CHECK(with_dag(s, 32, 2) == 184656384);
  CHECK(with_dag(s, 32, 3) == 184805888);
  CHECK(with_dag(s, 64, 1) == 184687104);
  CHECK(with_dag(s, 64, 2) == 185016832);
  CHECK(with_dag(s, 64, 3) == 185346560);
  CHECK(with_dag(s, 128, 1) == 185145856);
  CHECK(with_dag(s, 128, 2) == 185934336);
  CHECK(with_dag(s, 128, 3) == 186722816);
}

TEST_CASE("config: the paper's small model with fine experts has the paper's parameter counts", "[model]") {
  const ModelConfig s = paper_model(512, 4, 64, 128, 8);
  CHECK(num_parameters(s) == 184422912);
  CHECK(with_dag(s, 64, 1) == 184752640);
  CHECK(with_dag(s, 64, 2) == 185082368);
  CHECK(with_dag(s, 64, 3) == 185412096);
  CHECK(with_dag(s, 128, 1) == 185211392);
  CHECK(with_dag(s, 128, 2) == 185999872);
  CHECK(with_dag(s, 128, 3) == 186788352);
}

TEST_CASE("config: the paper's medium and large models have the paper's parameter counts", "[model]") {
  const ModelConfig m = paper_model(512, 6, 32, 256, 4), l = paper_model(1024, 8, 32, 512, 4);
  CHECK(num_parameters(m) == 210868736);
  CHECK(with_dag(m, 64, 1) == 211363328);
  CHECK(with_dag(m, 64, 2) == 211857920);
  CHECK(with_dag(m, 64, 3) == 212352512);
  CHECK(with_dag(m, 128, 1) == 212051456);
  CHECK(with_dag(m, 128, 2) == 213234176);
  CHECK(with_dag(m, 128, 3) == 214416896);
  CHECK(num_parameters(l) == 686572544);
  CHECK(with_dag(l, 256, 2) == 699171840);
}

TEST_CASE("config: active parameters count the chosen experts only", "[model]") {
  const ModelConfig s = paper_model(512, 4, 32, 256, 4);
  CHECK(num_parameters(s) - num_active_parameters(s) == 4 * 28 * 3 * 512 * 256);
  const ModelConfig dense = parse_model_config(llama_json(), "x");
  CHECK(num_active_parameters(dense) == num_parameters(dense));
}

TEST_CASE("config: the tensors' sizes add up to the parameter count", "[model]") {
  for (const Json& json :
       {llama_json(), with(llama_json(), "tie_word_embeddings", true), mixtral_json(), dagmoe_json()}) {
    const ModelConfig config = parse_model_config(json, "x");
    CHECK(elements(config) == num_parameters(config));
  }
  // SmolLM2-135M.
  ModelConfig config;
  config.vocab_size = 49152, config.hidden_size = 576, config.intermediate_size = 1536, config.num_hidden_layers = 30;
  config.num_attention_heads = 9, config.num_key_value_heads = 3, config.head_dim = 64,
  config.tie_word_embeddings = true;
  CHECK(num_parameters(config) == 134515008);
}

TEST_CASE("config: absent keys have the values that transformers gives them", "[model]") {
  const ModelConfig llama = parse_model_config(llama_json(), "x");
  CHECK(llama.num_key_value_heads == 4);
  CHECK(llama.head_dim == 8);
  CHECK(llama.rope.theta == 10000.0);
  CHECK(llama.rms_norm_eps == 1e-6);
  CHECK(llama.max_position_embeddings == 2048);
  CHECK(llama.bos_token_id == 1);
  CHECK(llama.eos_token_ids == std::vector<std::int64_t>{2});
  CHECK_FALSE(llama.pad_token_id);
  CHECK_FALSE(llama.tie_word_embeddings);
  const ModelConfig mixtral = parse_model_config(mixtral_json(), "x");
  CHECK(mixtral.rope.theta == 1e6);
  CHECK(mixtral.rms_norm_eps == 1e-5);
  CHECK(mixtral.router_aux_loss_coef == 0.001);
  CHECK(mixtral.moe->moe_intermediate_size == 48);
  CHECK(mixtral.moe->norm_topk_prob);
}

TEST_CASE("config: null means absent for heads and tokens", "[model]") {
  Json json = llama_json();
  for (const char* key : {"num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "rope_scaling"})
    json[key] = nullptr;
  const ModelConfig config = parse_model_config(json, "x");
  CHECK(config.num_key_value_heads == 4);
  CHECK(config.head_dim == 8);
  CHECK_FALSE(config.bos_token_id);
  CHECK(config.eos_token_ids.empty());
}

TEST_CASE("config: the rope base is read in both spellings and the newer one wins", "[model]") {
  const Json v5 = parse_json(R"({"rope_type": "default", "rope_theta": 500.0})", "x");
  CHECK(parse_model_config(with(llama_json(), "rope_theta", 200.0), "x").rope.theta == 200.0);
  CHECK(parse_model_config(with(llama_json(), "rope_parameters", v5), "x").rope.theta == 500.0);
  CHECK(parse_model_config(with(with(llama_json(), "rope_parameters", v5), "rope_theta", 200), "x").rope.theta ==
        500.0);
}

TEST_CASE("config: rope_scaling beside rope_parameters is refused unless the two agree", "[model]") {
  Json json =
      with(llama_json(), "rope_parameters", parse_json(R"({"rope_type": "default", "rope_theta": 500.0})", "x"));
  json["rope_scaling"] = parse_json(R"({"type": "default"})", "x");
  CHECK(problems_of(json) == "config.json: 'rope_scaling': differs from 'rope_parameters'; remove one of them");
  json["rope_theta"] = 500.0;
  CHECK(problems_of(json) == "none");
}

TEST_CASE("config: rope kinds are read with their numbers, others are refused by name", "[model]") {
  const Json linear = with(llama_json(), "rope_scaling", parse_json(R"({"type": "linear", "factor": 2.0})", "x"));
  CHECK(parse_model_config(linear, "x").rope.kind == RopeKind::kLinear);
  CHECK(parse_model_config(linear, "x").rope.factor == 2.0);
  const Json llama3 =
      with(llama_json(), "rope_parameters",
           parse_json(R"({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})",
                      "x"));
  CHECK(parse_model_config(llama3, "x").rope.theta == 5e5);
  CHECK(parse_model_config(llama3, "x").rope.original_max_position_embeddings == 8192);
  const Json yarn = with(llama_json(), "rope_scaling", parse_json(R"({"rope_type": "yarn", "factor": 4.0})", "x"));
  CHECK(parse_model_config(yarn, "x").rope.original_max_position_embeddings == 2048);  // max_position_embeddings
  const Json dynamic = with(llama_json(), "rope_scaling", parse_json(R"({"type": "dynamic", "factor": 2.0})", "x"));
  CHECK(problems_of(dynamic) ==
        "config.json: 'rope_scaling': rope kind 'dynamic' is not supported; supported: default, linear, llama3, yarn");
  const Json bare = with(llama_json(), "rope_scaling", parse_json(R"({"type": "llama3", "factor": 8.0})", "x"));
  CHECK(problems_of(bare) ==
        "config.json: 'rope_scaling': 'low_freq_factor' is missing\n"
        "config.json: 'rope_scaling': 'high_freq_factor' is missing");
}

TEST_CASE("config: the weight dtype is read in both spellings and the newer one wins", "[model]") {
  CHECK(parse_model_config(with(llama_json(), "torch_dtype", "float16"), "x").dtype == "float16");
  CHECK(parse_model_config(with(with(llama_json(), "torch_dtype", "float16"), "dtype", "bfloat16"), "x").dtype ==
        "bfloat16");
}

TEST_CASE("config: the expert count is read under each of its three names", "[model]") {
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    Json json = mixtral_json();
    json.erase("num_local_experts");
    json[key] = 6;
    CHECK(parse_model_config(json, "x").moe->num_experts == 6);
  }
  CHECK(problems_of(with(mixtral_json(), "num_experts", 8)) ==
        "config.json: 'num_experts': found 8, but 'num_local_experts' is 4");
}

TEST_CASE("config: the end token may be a list", "[model]") {
  const ModelConfig config = parse_model_config(with(llama_json(), "eos_token_id", {2, 7}), "x");
  CHECK(config.eos_token_ids == std::vector<std::int64_t>{2, 7});
  CHECK(model_config_json(config)["eos_token_id"] == Json({2, 7}));
}

TEST_CASE("config: every problem of a file is reported at once", "[model]") {
  Json json = llama_json();
  json.erase("vocab_size");
  json["hidden_size"] = "32";
  json["num_key_value_heads"] = 3;
  json["hidden_act"] = "gelu";
  json["partial_rotary_factor"] = 0.5;
  json["sliding_window"] = 512;
  json["quantization_config"] = {{"quant_method", "gptq"}};
  CHECK(problems_of(json) ==
        "config.json: 'vocab_size' is missing\n"
        "config.json: 'hidden_size': found '32', expected an integer from 1 to 131072\n"
        "config.json: 'num_key_value_heads': found 3, expected a divisor of num_attention_heads (4)\n"
        "config.json: 'hidden_act': found 'gelu', supported: silu\n"
        "config.json: 'sliding_window': found 512: Llama has no sliding window\n"
        "config.json: 'partial_rotary_factor': found 0.5: rotating a part of each head is not supported\n"
        "config.json: 'quantization_config': quantized weights are not supported; use the unquantized model");
}

TEST_CASE("config: of very many problems the first are reported and the rest counted", "[model]") {
  const std::string problems = problems_of(with(llama_json(), "eos_token_id", std::vector<std::string>(5000, "x")));
  CHECK(std::count(problems.begin(), problems.end(), '\n') == 20);
  CHECK_THAT(problems, Catch::EndsWith("config.json: and 4980 more problems"));
}

TEST_CASE("config: long texts and control characters stay out of messages", "[model]") {
  CHECK_THAT(problems_of(with(llama_json(), "hidden_act", "a\n\x1b[2J")), Catch::Contains("found 'a\\n\\x1b[2J', "));
  CHECK(problems_of(with(llama_json(), "hidden_act", std::string(100000, 'x'))).size() < 200);
  CHECK(problems_of(with(llama_json(), "model_type", std::string(100000, 'x'))).size() < 400);
}

TEST_CASE("config: a list of more layers than there are is refused", "[model]") {
  Json json = mixtral_json();
  json["model_type"] = "qwen2_moe";
  json["mlp_only_layers"] = std::vector<int>(5000, 1);
  CHECK(problems_of(json) == "config.json: 'mlp_only_layers': found a list of 5000 layers, but there are 2");
}

TEST_CASE("config: a hundred thousand unknown keys are kept without comparing each with all", "[model]") {
  std::string text = R"({"model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
                         "num_hidden_layers": 2, "num_attention_heads": 4)";
  for (int i = 0; i < 100000; ++i) text += ", \"key" + std::to_string(i) + "\": 0";
  const std::clock_t start = std::clock();
  const Json written = model_config_json(parse_model_config(parse_json(text + "}", "c.json"), "c.json"));
  CHECK(written.size() > 100000);
  CHECK(std::clock() - start < 10 * CLOCKS_PER_SEC);  // each with all takes minutes
}

TEST_CASE("config: an unknown model_type is refused by name", "[model]") {
  CHECK(problems_of(with(llama_json(), "model_type", "bert")) ==
        "config.json: 'model_type': found 'bert'; known: llama, mistral, qwen2, qwen3, mixtral, olmoe, qwen2_moe, "
        "qwen3_moe, deepseek_v2, dagmoe");
  CHECK(problems_of(parse_json("{}", "x")) ==
        "config.json: 'model_type': is missing; known: llama, mistral, qwen2, qwen3, mixtral, olmoe, qwen2_moe, "
        "qwen3_moe, deepseek_v2, dagmoe");
  CHECK_THAT(problems_of(with(llama_json(), "model_type", "qwen3moe")), Catch::Contains("did you mean 'qwen3_moe'?"));
  Json remote = with(llama_json(), "model_type", "my_moe");
  remote["auto_map"] = {{"AutoConfig", "x.Y"}};
  CHECK_THAT(problems_of(remote), Catch::Contains("'auto_map', and is not run"));
}

TEST_CASE("config: sizes out of range are refused", "[model]") {
  CHECK_THAT(problems_of(with(llama_json(), "num_hidden_layers", 0)),
             Catch::Contains("'num_hidden_layers': found 0, expected"));
  CHECK_THAT(problems_of(with(llama_json(), "vocab_size", 18446744073709551615u)),
             Catch::Contains("'vocab_size': found"));
  CHECK_THAT(problems_of(with(llama_json(), "rms_norm_eps", -1.0)),
             Catch::Contains("'rms_norm_eps': found -1.0, expected"));
  CHECK_THAT(problems_of(with(llama_json(), "head_dim", 7)),
             Catch::Contains("'head_dim': found 7, expected an even number"));
  CHECK_THAT(problems_of(with(llama_json(), "num_attention_heads", 5)), Catch::Contains("is no multiple of"));
  CHECK_THAT(problems_of(with(mixtral_json(), "num_experts_per_tok", 5)),
             Catch::Contains("'num_experts_per_tok': found 5, expected at most the number of experts (4)"));
}

TEST_CASE("config: a mixtral whose router is not Mixtral's is refused", "[model]") {
  CHECK_THAT(problems_of(with(mixtral_json(), "scoring_func", "sigmoid")), Catch::Contains("needs 'dagmoe'"));
  CHECK_THAT(problems_of(with(mixtral_json(), "norm_topk_prob", false)), Catch::Contains("needs 'dagmoe'"));
}

TEST_CASE("config: dagmoe reads its base family's keys, its router and its DAG", "[model]") {
  Json json = dagmoe_json();
  json["scoring_func"] = "sigmoid";
  json["norm_topk_prob"] = false;
  const ModelConfig config = parse_model_config(json, "x");
  CHECK(config.base_model_type == "mixtral");
  CHECK(config.moe->router_score == RouterScore::kSigmoid);
  CHECK_FALSE(config.moe->norm_topk_prob);
  REQUIRE(config.dag);
  CHECK(config.dag->num_iterations == 2);
  CHECK(config.dag->node_size == 8);
  CHECK(config.dag->node_residual == NodeResidual::kNone);
  CHECK(config.dag->norm == DagNorm::kRmsNorm);
}

TEST_CASE("config: problems within dag are reported with their place", "[model]") {
  Json json = dagmoe_json();
  json.erase("base_model_type");
  json["dag"]["node_sise"] = 8;
  json["dag"].erase("num_iterations");
  json["dag"]["activation"] = "sigmoid";
  CHECK(problems_of(json) ==
        "config.json: 'base_model_type': is missing; known: mixtral, olmoe, qwen2_moe, qwen3_moe, deepseek_v2\n"
        "config.json: dag: 'num_iterations' is missing\n"
        "config.json: dag: 'activation': found 'sigmoid', supported: silu\n"
        "config.json: dag: 'node_sise': unknown key; did you mean 'node_size'?");
}

TEST_CASE("config: a misspelt router setting is refused with the nearest name", "[model]") {
  CHECK(problems_of(with(dagmoe_json(), "scoring_func", "softmx")) ==
        "config.json: 'scoring_func': found 'softmx', expected one of softmax, sigmoid; did you mean 'softmax'?");
}

TEST_CASE("config: only a dagmoe has a router bias, a vector of each router", "[model]") {
  const ModelConfig config = parse_model_config(with(dagmoe_json(), "router_bias", true), "x");
  CHECK(config.moe->router_bias);
  CHECK(model_config_json(config)["router_bias"] == true);
  CHECK_FALSE(model_config_json(parse_model_config(dagmoe_json(), "x")).contains("router_bias"));
  const auto shapes = parameter_shapes(config);
  const std::pair<std::string, std::vector<std::int64_t>> bias{"model.layers.1.mlp.gate.e_score_correction_bias", {4}};
  CHECK(std::ranges::count(shapes, bias) == 1);
  CHECK(num_parameter_tensors(config) == static_cast<std::int64_t>(shapes.size()));
  CHECK(problems_of(with(mixtral_json(), "router_bias", true)) ==
        "config.json: 'router_bias': found true: this family's router has no bias; 'model_type' 'dagmoe' has one");
  CHECK(problems_of(with(dagmoe_json(), "router_bias", 1)) ==
        "config.json: 'router_bias': found 1, expected true or false");
}

TEST_CASE("config: a dagmoe without dag is a plain mixture of experts", "[model]") {
  CHECK_FALSE(parse_model_config(with(dagmoe_json(), "dag", nullptr), "x").dag);
}

TEST_CASE("config: what is written reads back as the same text, unknown keys included", "[model]") {
  Json sigmoid = dagmoe_json();
  sigmoid["scoring_func"] = "sigmoid";
  sigmoid["routed_scaling_factor"] = 2.5;
  sigmoid["auto_map"] = {{"AutoModelForCausalLM", "modeling_dagmoe.DagMoeForCausalLM"}};
  for (const Json& json : {llama_json(), mixtral_json(), dagmoe_json(), sigmoid}) {
    Json extended = json;
    extended["my_key"] = {{"b", 1}, {"a", {1.5, nullptr}}};
    extended["torch_dtype"] = "bfloat16";
    const Json written = model_config_json(parse_model_config(extended, "x"));
    CHECK(written["my_key"].dump() == R"({"b":1,"a":[1.5,null]})");
    CHECK(model_config_json(parse_model_config(written, "x")).dump() == written.dump());
  }
}

TEST_CASE("config: files of transformers read and write back without a change of meaning", "[model]") {
  const std::filesystem::path golden = std::filesystem::path(DAGMOE_SOURCE_DIR) / "tests/golden";
  std::vector<std::filesystem::path> folders = {golden / "tiny_llama", golden / "tiny_llama_tied",
                                                golden / "tiny_mixtral"};
  for (const auto& entry : std::filesystem::directory_iterator(golden / "families")) folders.push_back(entry.path());
  REQUIRE(folders.size() > 20);
  for (const auto& folder : folders) {
    INFO(folder);
    const Json original = read_json_file(folder / "config.json");
    const ModelConfig config = read_model_config(folder);
    const Json written = model_config_json(config);
    ModelConfig again = parse_model_config(written, "x");
    again.extra = config.extra;  // settings that are written in one spelling more
    CHECK(again == config);
    for (const auto& [key, value] : original.items()) {
      // Positions that are stretched are written in the spelling that transformers 4 knows too.
      if (key == "rope_parameters" && config.rope.kind != RopeKind::kDefault) continue;
      if (key == "num_local_experts" && !written.contains(key)) continue;  // num_experts, which both versions read
      if (key == "head_dim" && value.is_null()) continue;                  // written out
      INFO(key);
      REQUIRE(written.contains(key));
      CHECK(written[key] == value);
    }
  }
}

TEST_CASE("config: a folder without config.json is an input error that names the file", "[model]") {
  CHECK_THROWS_AS(read_model_config("/nowhere/at/all"), InputError);
  CHECK_THROWS_WITH(read_model_config("/nowhere/at/all"), Catch::Contains("/nowhere/at/all/config.json"));
}
