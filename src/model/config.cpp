#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// Far above every published model, and low enough that no product of them overflows 64 bits.
constexpr std::int64_t kMaxVocabSize = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxHiddenSize = 1 << 17, kMaxIntermediateSize = 1 << 18, kMaxLayers = 1 << 12;
constexpr std::int64_t kMaxHeads = 1 << 12, kMaxHeadDim = 1 << 14, kMaxExperts = 1 << 14;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 40, kMaxIterations = 64, kMaxNodeSize = 1 << 16;

// What transformers 5.23.0 takes for an absent key, per family.
struct FamilyDefaults {
  double rms_norm_eps, rope_theta;
  std::int64_t max_position_embeddings;
};
constexpr FamilyDefaults kLlamaDefaults = {1e-6, 10000.0, 2048};
constexpr FamilyDefaults kMixtralDefaults = {1e-5, 1e6, 131072};
constexpr double kMixtralAuxLossCoef = 0.001;
constexpr std::int64_t kDefaultBos = 1, kDefaultEos = 2;

template <class Enum>
using EnumNames = std::initializer_list<std::pair<const char*, Enum>>;
constexpr EnumNames<RouterScore> kRouterScores = {{"softmax", RouterScore::kSoftmax},
                                                  {"sigmoid", RouterScore::kSigmoid}};
constexpr EnumNames<NodeResidual> kNodeResiduals = {{"hidden_state", NodeResidual::kHiddenState},
                                                    {"normed_input", NodeResidual::kNormedInput},
                                                    {"none", NodeResidual::kNone}};
constexpr EnumNames<DagNorm> kDagNorms = {{"layer_norm", DagNorm::kLayerNorm}, {"rms_norm", DagNorm::kRmsNorm}};

template <class Enum>
const char* name_of(Enum value, EnumNames<Enum> names) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  throw InternalError("enumerator without a name");
}

std::string found_text(const Json& value) {
  if (value.is_object() || value.is_array()) return value.type_name();
  return value.is_string() ? "'" + value.get<std::string>() + "'" : value.dump();
}

/// One JSON object whose keys are asked for one by one; problems are collected, not thrown.
class Keys {
 public:
  Keys(const Json& object, std::string prefix, std::vector<std::string>& problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  void problem(std::string_view key, const std::string& message) {
    problems_.push_back(str(prefix_, "'", key, "': ", message));
  }

  /// The value of a key, null when it is absent or null; counts as asked for.
  const Json* ask(std::string_view key) {
    asked_.emplace_back(key);
    return peek(key);
  }

  /// The same for a key that is checked but stays among the extra ones.
  const Json* peek(std::string_view key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  bool is_absent(std::string_view key) const { return object_.find(key) == object_.end(); }

  bool integer(std::string_view key, std::int64_t& value, std::int64_t min, std::int64_t max) {
    const Json* found = ask(key);
    return found != nullptr && as_integer(key, *found, value, min, max);
  }

  void required(std::string_view key, std::int64_t& value, std::int64_t max) {
    if (!integer(key, value, 1, max) && peek(key) == nullptr)
      problems_.push_back(str(prefix_, "'", key, "' is missing"));
  }

  bool as_integer(std::string_view key, const Json& json, std::int64_t& value, std::int64_t min, std::int64_t max) {
    const bool fits = json.is_number_integer() &&
                      (!json.is_number_unsigned() || json.get<std::uint64_t>() <= static_cast<std::uint64_t>(max));
    if (!fits || json.get<std::int64_t>() < min || json.get<std::int64_t>() > max) {
      problem(key, str("found ", found_text(json), ", expected an integer from ", min, " to ", max));
      return false;
    }
    value = json.get<std::int64_t>();
    return true;
  }

  bool number(std::string_view key, double& value, double min) {
    const Json* found = ask(key);
    return found != nullptr && as_number(key, *found, value, min);
  }

  bool as_number(std::string_view key, const Json& json, double& value, double min) {
    if (!json.is_number() || !(json.get<double>() >= min) || !std::isfinite(json.get<double>())) {
      problem(key, str("found ", found_text(json), ", expected a number of at least ", min));
      return false;
    }
    value = json.get<double>();
    return true;
  }

  void boolean(std::string_view key, bool& value) {
    const Json* found = ask(key);
    if (found == nullptr) return;
    if (!found->is_boolean()) return problem(key, str("found ", found_text(*found), ", expected true or false"));
    value = found->get<bool>();
  }

  template <class Enum>
  void choice(std::string_view key, Enum& value, EnumNames<Enum> names) {
    const Json* found = ask(key);
    if (found == nullptr) return;
    std::vector<std::string> known;
    for (const auto& [name, candidate] : names) {
      if (*found == name) return void(value = candidate);
      known.emplace_back(name);
    }
    const std::string hint = found->is_string() ? did_you_mean(found->get<std::string>(), known) : "";
    problem(key, str("found ", found_text(*found), ", expected one of ", join(known, ", "), hint));
  }

  /// Keys nobody asked for, as they are in the file.
  Json rest() const {
    Json rest = Json::object();
    for (const auto& [key, value] : object_.items()) {
      if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) rest[key] = value;
    }
    return rest;
  }

  const std::vector<std::string>& asked() const { return asked_; }

 private:
  const Json& object_;
  std::string prefix_;
  std::vector<std::string>& problems_;
  std::vector<std::string> asked_;
};

// False when the family is unknown: how its other keys are spelled is then unknown too.
bool read_model_type(Keys& keys, ModelConfig& config) {
  const std::vector<std::string> known = {"llama", "mixtral", "dagmoe"};
  const Json* type = keys.ask("model_type");
  keys.ask("architectures");
  const Json* base = keys.peek("base_model_type");
  if (type == nullptr) {
    keys.problem("model_type", "is missing; supported: " + join(known, ", "));
    return false;
  }
  config.model_type = type->is_string() ? type->get<std::string>() : "";
  if (std::find(known.begin(), known.end(), config.model_type) == known.end()) {
    const std::string remote =
        keys.peek("auto_map") ? " (its code lies in the folder, 'auto_map', and is not run)" : "";
    keys.problem("model_type", str("found ", found_text(*type), remote, ", supported: ", join(known, ", ")));
    return false;
  }
  config.base_model_type = config.model_type;
  if (config.model_type != "dagmoe") return true;
  keys.ask("base_model_type");
  config.base_model_type = "mixtral";
  if (base == nullptr) {
    keys.problem("base_model_type", "is missing; supported: mixtral");
  } else if (*base != "mixtral") {
    keys.problem("base_model_type", str("found ", found_text(*base), ", supported: mixtral"));
  }
  return true;
}

// Settings that would change the result and that no code here follows. They stay among the extra keys when harmless.
void refuse_unsupported(Keys& keys, const ModelConfig& config) {
  const auto refuse_unless = [&](std::string_view key, const Json& harmless, std::string_view reason) {
    const Json* found = keys.peek(key);
    if (found != nullptr && *found != harmless) keys.problem(key, str("found ", found_text(*found), ": ", reason));
  };
  refuse_unless("attention_bias", false, "biases in attention are not supported");
  refuse_unless("mlp_bias", false, "biases in the feed-forward layers are not supported");
  refuse_unless("partial_rotary_factor", 1.0, "rotating a part of each head is not supported");
  const Json* window = keys.peek("sliding_window");
  const bool reaches = window != nullptr && window->is_number() && *window >= config.max_position_embeddings;
  if (window != nullptr && !reaches) {
    keys.problem("sliding_window", str("found ", found_text(*window), ": sliding-window attention is not supported"));
  }
  const Json* activation = keys.ask("hidden_act");
  if (activation != nullptr && *activation != "silu") {
    keys.problem("hidden_act", str("found ", found_text(*activation), ", supported: silu"));
  }
}

void read_sizes(Keys& keys, ModelConfig& config) {
  keys.required("vocab_size", config.vocab_size, kMaxVocabSize);
  keys.required("hidden_size", config.hidden_size, kMaxHiddenSize);
  keys.required("intermediate_size", config.intermediate_size, kMaxIntermediateSize);
  keys.required("num_hidden_layers", config.num_hidden_layers, kMaxLayers);
  keys.required("num_attention_heads", config.num_attention_heads, kMaxHeads);
  config.num_key_value_heads = config.num_attention_heads;
  keys.integer("num_key_value_heads", config.num_key_value_heads, 1, kMaxHeads);
  keys.integer("max_position_embeddings", config.max_position_embeddings, 1, kMaxPositions);
  if (config.num_attention_heads > 0 && config.num_attention_heads % config.num_key_value_heads != 0) {
    keys.problem("num_key_value_heads",
                 str("found ", config.num_key_value_heads, ", expected a divisor of num_attention_heads (",
                     config.num_attention_heads, ")"));
  }
  if (!keys.integer("head_dim", config.head_dim, 2, kMaxHeadDim) && keys.peek("head_dim") == nullptr) {
    if (config.num_attention_heads == 0 || config.hidden_size == 0) return;  // reported above
    config.head_dim = config.hidden_size / config.num_attention_heads;
    if (config.hidden_size % config.num_attention_heads != 0) {
      keys.problem("head_dim", str("is missing, and hidden_size (", config.hidden_size,
                                   ") is no multiple of num_attention_heads (", config.num_attention_heads, ")"));
    }
  }
  if (config.head_dim % 2 != 0) keys.problem("head_dim", str("found ", config.head_dim, ", expected an even number"));
}

/// One of the two places where a file says how positions are rotated.
struct RopeSettings {
  std::string kind = "default";
  std::optional<double> theta;
};

std::optional<RopeSettings> read_rope_settings(Keys& keys, std::string_view key) {
  const Json* json = keys.ask(key);
  if (json == nullptr) return std::nullopt;
  RopeSettings settings;
  if (!json->is_object()) {
    keys.problem(key, str("found ", found_text(*json), ", expected an object"));
    return settings;
  }
  for (const char* name : {"type", "rope_type"}) {
    if (!json->contains(name) || (*json)[name].is_null()) continue;
    if ((*json)[name].is_string()) settings.kind = (*json)[name].get<std::string>();
    if ((*json)[name] != "default") {
      keys.problem(key, str("rope kind ", found_text((*json)[name]), " is not supported; supported: default"));
    }
  }
  for (const auto& [name, value] : json->items()) {
    if (value.is_object()) keys.problem(key, str("settings for one kind of layer ('", name, "') are not supported"));
  }
  if (json->contains("partial_rotary_factor") && (*json)["partial_rotary_factor"] != 1.0) {
    keys.problem(key, "rotating a part of each head ('partial_rotary_factor') is not supported");
  }
  if (json->contains("rope_theta")) {
    double theta = 0.0;
    if (keys.as_number(str(key, ".rope_theta"), (*json)["rope_theta"], theta, 1.0)) settings.theta = theta;
  }
  return settings;
}

void read_rope(Keys& keys, ModelConfig& config) {
  std::optional<double> theta;
  if (double value = 0.0; keys.number("rope_theta", value, 1.0)) theta = value;
  const std::optional<RopeSettings> v4 = read_rope_settings(keys, "rope_scaling");
  const std::optional<RopeSettings> v5 = read_rope_settings(keys, "rope_parameters");
  if (v4 && v5) {
    // transformers takes rope_scaling then and drops the other's base.
    const double base_v4 = v4->theta.value_or(theta.value_or(config.rope_theta));
    if (v4->kind != v5->kind || base_v4 != v5->theta.value_or(config.rope_theta)) {
      keys.problem("rope_scaling", "differs from 'rope_parameters'; remove one of them");
    }
  }
  if (theta) config.rope_theta = *theta;
  if (v4 && v4->theta) config.rope_theta = *v4->theta;
  if (v5 && v5->theta) config.rope_theta = *v5->theta;
}

void read_token_ids(Keys& keys, ModelConfig& config) {
  const auto token_id = [&](std::string_view key, const Json& json) -> std::optional<std::int64_t> {
    std::int64_t id = 0;
    // -1 is how some Llama configs say "none".
    if (!keys.as_integer(key, json, id, -1, kMaxVocabSize) || id < 0) return std::nullopt;
    return id;
  };
  if (keys.is_absent("bos_token_id")) config.bos_token_id = kDefaultBos;
  if (keys.is_absent("eos_token_id")) config.eos_token_ids = {kDefaultEos};
  if (const Json* json = keys.ask("bos_token_id")) config.bos_token_id = token_id("bos_token_id", *json);
  if (const Json* json = keys.ask("pad_token_id")) config.pad_token_id = token_id("pad_token_id", *json);
  const Json* eos = keys.ask("eos_token_id");
  if (eos == nullptr) return;
  const std::vector<Json> items = eos->is_array() ? eos->get<std::vector<Json>>() : std::vector<Json>{*eos};
  for (const Json& item : items) {
    if (const auto id = token_id("eos_token_id", item)) config.eos_token_ids.push_back(*id);
  }
}

// The number of experts has three names, each of them read for every family.
void read_num_experts(Keys& keys, MoeConfig& moe) {
  std::string first;
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    std::int64_t count = 0;
    if (keys.ask(key) == nullptr || !keys.integer(key, count, 1, kMaxExperts)) continue;
    if (!first.empty() && count != moe.num_experts) {
      keys.problem(key, str("found ", count, ", but '", first, "' is ", moe.num_experts));
    }
    if (first.empty()) first = key, moe.num_experts = count;
  }
  const bool any = keys.peek("num_local_experts") || keys.peek("num_experts") || keys.peek("n_routed_experts");
  if (!any) keys.problem("num_local_experts", "is missing");
}

void read_moe(Keys& keys, ModelConfig& config) {
  MoeConfig moe;
  read_num_experts(keys, moe);
  keys.required("num_experts_per_tok", moe.num_experts_per_tok, kMaxExperts);
  if (moe.num_experts_per_tok > moe.num_experts) {
    keys.problem("num_experts_per_tok", str("found ", moe.num_experts_per_tok,
                                            ", expected at most the number of experts (", moe.num_experts, ")"));
  }
  moe.moe_intermediate_size = config.intermediate_size;
  config.router_aux_loss_coef = kMixtralAuxLossCoef;
  keys.number("router_aux_loss_coef", config.router_aux_loss_coef, 0.0);
  keys.choice("scoring_func", moe.router_score, kRouterScores);
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  keys.number("routed_scaling_factor", moe.routed_scaling_factor, 0.0);
  const bool is_mixtrals =
      moe.router_score == RouterScore::kSoftmax && moe.norm_topk_prob && moe.routed_scaling_factor == 1.0;
  if (config.model_type == "mixtral" && !is_mixtrals) {
    keys.problem("model_type",
                 "found 'mixtral', whose router is softmax, renormalised, without a scale; "
                 "another 'scoring_func', 'norm_topk_prob' or 'routed_scaling_factor' needs 'dagmoe'");
  }
  config.moe = moe;
}

void read_dag(Keys& keys, ModelConfig& config, std::vector<std::string>& problems) {
  const Json* json = keys.ask("dag");
  if (json == nullptr) return;
  if (!json->is_object()) return keys.problem("dag", str("found ", found_text(*json), ", expected an object"));
  Keys dag_keys(*json, "dag: ", problems);
  DagConfig dag;
  dag_keys.required("num_iterations", dag.num_iterations, kMaxIterations);
  dag_keys.required("node_size", dag.node_size, kMaxNodeSize);
  dag_keys.choice("node_residual", dag.node_residual, kNodeResiduals);
  dag_keys.choice("norm", dag.norm, kDagNorms);
  const Json* activation = dag_keys.ask("activation");
  if (activation != nullptr && *activation != "silu") {
    dag_keys.problem("activation", str("found ", found_text(*activation), ", supported: silu"));
  }
  const std::vector<std::string> known = dag_keys.asked();
  const Json unknown = dag_keys.rest();
  for (const auto& [key, value] : unknown.items()) dag_keys.problem(key, "unknown key" + did_you_mean(key, known));
  config.dag = dag;
}

void read_dtype(Keys& keys, ModelConfig& config) {
  const Json* v4 = keys.ask("torch_dtype");
  const Json* v5 = keys.ask("dtype");
  const Json* dtype = v5 != nullptr ? v5 : v4;
  if (dtype == nullptr) return;
  if (!dtype->is_string()) return keys.problem("dtype", str("found ", found_text(*dtype), ", expected a name"));
  config.dtype = dtype->get<std::string>();
  constexpr std::string_view kPrefix = "torch.";
  if (config.dtype.starts_with(kPrefix)) config.dtype.erase(0, kPrefix.size());
}

void read_family(Keys& keys, ModelConfig& config, std::vector<std::string>& problems) {
  const bool is_moe = config.base_model_type == "mixtral";
  const FamilyDefaults& defaults = is_moe ? kMixtralDefaults : kLlamaDefaults;
  config.rms_norm_eps = defaults.rms_norm_eps;
  config.rope_theta = defaults.rope_theta;
  config.max_position_embeddings = defaults.max_position_embeddings;
  read_sizes(keys, config);
  keys.number("rms_norm_eps", config.rms_norm_eps, 0.0);
  keys.number("initializer_range", config.initializer_range, 0.0);
  keys.boolean("tie_word_embeddings", config.tie_word_embeddings);
  read_rope(keys, config);
  read_token_ids(keys, config);
  read_dtype(keys, config);
  if (is_moe) read_moe(keys, config);
  if (config.model_type == "dagmoe") read_dag(keys, config, problems);
  refuse_unsupported(keys, config);
}

void warn_of_ignored(const Keys& keys, const std::string& where) {
  for (const char* key : {"attention_dropout", "router_jitter_noise"}) {
    const Json* found = keys.peek(key);
    if (found != nullptr && *found != 0.0) log_warning(str(where, ": '", key, "' has no effect here"));
  }
}

using TensorShapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

void add_attention(const ModelConfig& config, const std::string& layer, TensorShapes& shapes) {
  const std::int64_t D = config.hidden_size;
  const std::int64_t q_rows = config.num_attention_heads * config.head_dim,
                     kv_rows = config.num_key_value_heads * config.head_dim;
  shapes.push_back({layer + "input_layernorm.weight", {D}});
  shapes.push_back({layer + "self_attn.q_proj.weight", {q_rows, D}});
  shapes.push_back({layer + "self_attn.k_proj.weight", {kv_rows, D}});
  shapes.push_back({layer + "self_attn.v_proj.weight", {kv_rows, D}});
  shapes.push_back({layer + "self_attn.o_proj.weight", {D, q_rows}});
  shapes.push_back({layer + "post_attention_layernorm.weight", {D}});
}

void add_feed_forward(const ModelConfig& config, const std::string& layer, TensorShapes& shapes) {
  const std::int64_t D = config.hidden_size;
  if (!config.moe) {
    const std::int64_t F = config.intermediate_size;
    shapes.push_back({layer + "mlp.gate_proj.weight", {F, D}});
    shapes.push_back({layer + "mlp.up_proj.weight", {F, D}});
    shapes.push_back({layer + "mlp.down_proj.weight", {D, F}});
    return;
  }
  const std::int64_t E = config.moe->num_experts, F = config.moe->moe_intermediate_size;
  shapes.push_back({layer + "mlp.gate.weight", {E, D}});
  for (std::int64_t e = 0; e < E; ++e) {
    const std::string expert = str(layer, "mlp.experts.", e, ".");
    shapes.push_back({expert + "gate_proj.weight", {F, D}});
    shapes.push_back({expert + "up_proj.weight", {F, D}});
    shapes.push_back({expert + "down_proj.weight", {D, F}});
  }
}

void add_dag(const ModelConfig& config, const std::string& layer, TensorShapes& shapes) {
  const std::int64_t D = config.hidden_size, G = config.dag->node_size;
  for (std::int64_t l = 0; l < config.dag->num_iterations; ++l) {
    const std::string step = str(layer, "mlp.dag.", l, ".");
    shapes.push_back({step + "norm.weight", {D}});
    shapes.push_back({step + "down_proj.weight", {G, D}});
    shapes.push_back({step + "edge_proj.weight", {G, 2 * G}});
    shapes.push_back({step + "node_proj.weight", {G, 2 * G}});
    shapes.push_back({step + "up_proj.weight", {D, G}});
  }
}

std::int64_t count_parameters(const ModelConfig& config, std::int64_t experts_per_layer) {
  const std::int64_t D = config.hidden_size, d = config.head_dim;
  const std::int64_t attention = 2 * D * d * (config.num_attention_heads + config.num_key_value_heads);
  std::int64_t layer = attention + 2 * D;
  if (config.moe) {
    layer += experts_per_layer * 3 * D * config.moe->moe_intermediate_size + config.moe->num_experts * D;
  } else {
    layer += 3 * D * config.intermediate_size;
  }
  if (config.dag) layer += num_dag_parameters(*config.dag, D);
  const std::int64_t embeddings = (config.tie_word_embeddings ? 1 : 2) * config.vocab_size * D;
  return embeddings + D + config.num_hidden_layers * layer;
}

}  // namespace

ModelConfig parse_model_config(const Json& json, const std::string& where) {
  if (!json.is_object()) throw InputError(str(where, ": found ", json.type_name(), ", expected an object"));
  std::vector<std::string> problems;
  Keys keys(json, "", problems);
  ModelConfig config;
  if (read_model_type(keys, config)) read_family(keys, config, problems);
  if (keys.peek("quantization_config") != nullptr) {
    keys.problem("quantization_config", "quantized weights are not supported; use the unquantized model");
  }
  for (std::string& problem : problems) problem = str(where, ": ", problem);
  if (!problems.empty()) throw InputError(join(problems, "\n"));
  warn_of_ignored(keys, where);
  config.extra = keys.rest();
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  return parse_model_config(read_json_file(path), path.string());
}

Json model_config_json(const ModelConfig& config) {
  const auto or_null = [](const std::optional<std::int64_t>& id) { return id ? Json(*id) : Json(nullptr); };
  Json json = config.extra;
  const bool is_dagmoe = config.model_type == "dagmoe", is_mixtral = config.model_type == "mixtral";
  json["architectures"] = {is_dagmoe ? "DagMoeForCausalLM" : is_mixtral ? "MixtralForCausalLM" : "LlamaForCausalLM"};
  json["model_type"] = config.model_type;
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.moe ? config.moe->moe_intermediate_size : config.intermediate_size;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_key_value_heads"] = config.num_key_value_heads;
  json["head_dim"] = config.head_dim;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["initializer_range"] = config.initializer_range;
  json["hidden_act"] = "silu";
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["bos_token_id"] = or_null(config.bos_token_id);
  json["pad_token_id"] = or_null(config.pad_token_id);
  json["eos_token_id"] = config.eos_token_ids;
  if (config.eos_token_ids.size() < 2)
    json["eos_token_id"] = config.eos_token_ids.empty() ? Json(nullptr) : Json(config.eos_token_ids[0]);
  // The first for transformers 5, the second for 4.
  json["rope_parameters"] = {{"rope_theta", config.rope_theta}, {"rope_type", "default"}};
  json["rope_theta"] = config.rope_theta;
  if (!config.dtype.empty()) json["dtype"] = json["torch_dtype"] = config.dtype;
  if (config.moe) {
    json["num_local_experts"] = config.moe->num_experts;
    json["num_experts_per_tok"] = config.moe->num_experts_per_tok;
    json["router_aux_loss_coef"] = config.router_aux_loss_coef;
  }
  if (is_dagmoe && config.moe) {
    json["base_model_type"] = config.base_model_type;
    json["scoring_func"] = name_of(config.moe->router_score, kRouterScores);
    json["norm_topk_prob"] = config.moe->norm_topk_prob;
    json["routed_scaling_factor"] = config.moe->routed_scaling_factor;
  }
  if (config.dag) {
    json["dag"] = {{"num_iterations", config.dag->num_iterations},
                   {"node_size", config.dag->node_size},
                   {"node_residual", name_of(config.dag->node_residual, kNodeResiduals)},
                   {"norm", name_of(config.dag->norm, kDagNorms)},
                   {"activation", "silu"}};
  }
  // Keys in alphabetical order, as transformers writes them.
  std::map<std::string, Json> sorted;
  for (const auto& [key, value] : json.items()) sorted[key] = value;
  Json ordered = Json::object();
  for (auto& [key, value] : sorted) ordered[key] = std::move(value);
  return ordered;
}

std::vector<std::pair<std::string, std::vector<std::int64_t>>> parameter_shapes(const ModelConfig& config) {
  TensorShapes shapes;
  shapes.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    const std::string layer = str("model.layers.", n, ".");
    add_attention(config, layer, shapes);
    add_feed_forward(config, layer, shapes);
    if (config.dag) add_dag(config, layer, shapes);
  }
  shapes.push_back({"model.norm.weight", {config.hidden_size}});
  if (!config.tie_word_embeddings) shapes.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  return shapes;
}

std::int64_t num_parameters(const ModelConfig& config) {
  return count_parameters(config, config.moe ? config.moe->num_experts : 0);
}

std::int64_t num_active_parameters(const ModelConfig& config) {
  return count_parameters(config, config.moe ? config.moe->num_experts_per_tok : 0);
}

std::int64_t num_dag_parameters(const DagConfig& dag, std::int64_t hidden_size) {
  const std::int64_t D = hidden_size, G = dag.node_size;
  return dag.num_iterations * (2 * D * G + 4 * G * G + D);
}

}  // namespace dagmoe
