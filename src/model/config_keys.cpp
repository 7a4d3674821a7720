#include "model/config_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kMaxVocabSize = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 40;
constexpr EnumNames<RopeKind> kRopeKinds = {{"default", RopeKind::kDefault},
                                            {"linear", RopeKind::kLinear},
                                            {"llama3", RopeKind::kLlama3},
                                            {"yarn", RopeKind::kYarn}};

}  // namespace

std::string found_text(const Json& value) {
  if (value.is_object() || value.is_array()) return value.type_name();
  return value.is_string() ? quoted_for_message(value.get_ref<const std::string&>()) : value.dump();
}

void ConfigKeys::problem(std::string_view key, const std::string& message) {
  problems_.push_back(str(prefix_, quoted_for_message(key), ": ", message));
}

const Json* ConfigKeys::ask(std::string_view key) {
  asked_.emplace_back(key);
  return peek(key);
}

const Json* ConfigKeys::peek(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigKeys::was_asked(std::string_view key) const {
  return std::find(asked_.begin(), asked_.end(), key) != asked_.end();
}

bool ConfigKeys::integer(std::string_view key, std::int64_t& value, std::int64_t min, std::int64_t max) {
  const Json* found = ask(key);
  return found != nullptr && as_integer(key, *found, value, min, max);
}

void ConfigKeys::required(std::string_view key, std::int64_t& value, std::int64_t max) {
  if (!integer(key, value, 1, max) && peek(key) == nullptr) {
    problems_.push_back(str(prefix_, "'", key, "' is missing"));
  }
}

bool ConfigKeys::number(std::string_view key, double& value, double min) {
  const Json* found = ask(key);
  return found != nullptr && as_number(key, *found, value, min);
}

void ConfigKeys::boolean(std::string_view key, bool& value) {
  const Json* found = ask(key);
  if (found == nullptr) return;
  if (!found->is_boolean()) return problem(key, str("found ", found_text(*found), ", expected true or false"));
  value = found->get<bool>();
}

void ConfigKeys::layers(std::string_view key, std::vector<std::int64_t>& value, std::int64_t num_layers) {
  const Json* found = ask(key);
  if (found == nullptr) return;
  if (!found->is_array()) return problem(key, str("found ", found_text(*found), ", expected a list of layers"));
  value.clear();
  // Longer ones have duplicates, and every layer is looked for in the list.
  if (found->size() > static_cast<std::size_t>(std::max<std::int64_t>(num_layers, 0))) {
    return problem(key, str("found a list of ", found->size(), " layers, but there are ", num_layers));
  }
  for (const Json& item : *found) {
    std::int64_t layer = 0;
    if (as_integer(key, item, layer, 0, std::max<std::int64_t>(num_layers - 1, 0))) value.push_back(layer);
  }
}

bool ConfigKeys::as_integer(std::string_view key, const Json& json, std::int64_t& value, std::int64_t min,
                            std::int64_t max) {
  const bool fits = json.is_number_integer() &&
                    (!json.is_number_unsigned() || json.get<std::uint64_t>() <= static_cast<std::uint64_t>(max));
  if (!fits || json.get<std::int64_t>() < min || json.get<std::int64_t>() > max) {
    problem(key, str("found ", found_text(json), ", expected an integer from ", min, " to ", max));
    return false;
  }
  value = json.get<std::int64_t>();
  return true;
}

bool ConfigKeys::as_number(std::string_view key, const Json& json, double& value, double min) {
  if (!json.is_number() || !(json.get<double>() >= min) || !std::isfinite(json.get<double>())) {
    problem(key, str("found ", found_text(json), ", expected a number of at least ", min));
    return false;
  }
  value = json.get<double>();
  return true;
}

void ConfigKeys::refuse_unless(std::string_view key, const Json& harmless, std::string_view reason) {
  const Json* found = peek(key);
  if (found != nullptr && *found != harmless) problem(key, str("found ", found_text(*found), ": ", reason));
}

Json ConfigKeys::rest() const {
  Json rest = Json::object();
  // operator[] would search all earlier keys.
  auto& members = static_cast<Json::object_t::Container&>(rest.get_ref<Json::object_t&>());
  for (const auto& [key, value] : object_.items()) {
    if (!was_asked(key)) members.emplace_back(key, value);
  }
  return rest;
}

template <class Enum>
const char* name_of(Enum value, EnumNames<Enum> names) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  throw InternalError("enumerator without a name");
}

template <class Enum>
void ConfigKeys::choice(std::string_view key, Enum& value, EnumNames<Enum> names) {
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

template const char* name_of(RouterScore, EnumNames<RouterScore>);
template const char* name_of(NodeResidual, EnumNames<NodeResidual>);
template const char* name_of(DagNorm, EnumNames<DagNorm>);
template void ConfigKeys::choice(std::string_view, RouterScore&, EnumNames<RouterScore>);
template void ConfigKeys::choice(std::string_view, NodeResidual&, EnumNames<NodeResidual>);
template void ConfigKeys::choice(std::string_view, DagNorm&, EnumNames<DagNorm>);

namespace {

void read_sizes(ConfigKeys& keys, ModelConfig& config, const FamilyDefaults& defaults) {
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
  config.head_dim = defaults.head_dim;
  if (!keys.integer("head_dim", config.head_dim, 2, kMaxHeadDim) && keys.peek("head_dim") == nullptr &&
      defaults.head_dim == 0) {
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
  RopeConfig rope;
  bool has_theta = false;
};

void read_rope_kind(ConfigKeys& keys, std::string_view key, const Json& json, RopeConfig& rope) {
  std::vector<std::string> known;
  for (const auto& [name, kind] : kRopeKinds) known.emplace_back(name);
  for (const char* name : {"type", "rope_type"}) {
    if (!json.contains(name) || json[name].is_null()) continue;
    const auto found = std::find_if(kRopeKinds.begin(), kRopeKinds.end(),
                                    [&](const auto& candidate) { return json[name] == candidate.first; });
    if (found != kRopeKinds.end()) {
      rope.kind = found->second;
    } else {
      keys.problem(key, str("rope kind ", found_text(json[name]), " is not supported; supported: ", join(known, ", ")));
    }
  }
}

void read_rope_numbers(ConfigKeys& keys, std::string_view key, const Json& json, RopeConfig& rope) {
  const auto number = [&](const char* name, double& value, double min, bool is_required) {
    if (json.contains(name) && !json[name].is_null()) {
      keys.as_number(str(key, ".", name), json[name], value, min);
    } else if (is_required) {
      keys.problem(key, str("'", name, "' is missing"));
    }
  };
  const auto optional_number = [&](const char* name, std::optional<double>& value) {
    // 0 counts as absent in transformers.
    if (double found = 0.0; number(name, found, 0.0, false), found != 0.0) value = found;
  };
  number("factor", rope.factor, 1e-6, true);
  if (rope.kind == RopeKind::kLinear) return;
  if (rope.kind == RopeKind::kLlama3) {
    number("low_freq_factor", rope.low_freq_factor, 1e-6, true);
    number("high_freq_factor", rope.high_freq_factor, 1e-6, true);
    if (!(rope.low_freq_factor < rope.high_freq_factor)) {
      keys.problem(key, str("'low_freq_factor' (", rope.low_freq_factor, ") must be less than 'high_freq_factor' (",
                            rope.high_freq_factor, ")"));
    }
  }
  // A value outside the object has priority, as in transformers.
  const Json* outer = keys.peek("original_max_position_embeddings");
  const char* name = "original_max_position_embeddings";
  if (outer != nullptr || json.contains(name)) {
    keys.as_integer(str(key, ".", name), outer != nullptr ? *outer : json[name], rope.original_max_position_embeddings,
                    1, kMaxPositions);
  }
  if (rope.kind != RopeKind::kYarn) return;
  number("beta_fast", rope.beta_fast, 0.0, false);
  number("beta_slow", rope.beta_slow, 0.0, false);
  optional_number("attention_factor", rope.attention_factor);
  optional_number("mscale", rope.mscale);
  optional_number("mscale_all_dim", rope.mscale_all_dim);
  if (json.contains("truncate") && json["truncate"].is_boolean()) rope.truncate = json["truncate"].get<bool>();
}

std::optional<RopeSettings> read_rope_settings(ConfigKeys& keys, std::string_view key, const ModelConfig& config) {
  const Json* json = keys.ask(key);
  if (json == nullptr) return std::nullopt;
  RopeSettings settings;
  RopeConfig& rope = settings.rope;
  if (!json->is_object()) {
    keys.problem(key, str("found ", found_text(*json), ", expected an object"));
    return settings;
  }
  read_rope_kind(keys, key, *json, rope);
  for (const auto& [name, value] : json->items()) {
    if (value.is_object())
      keys.problem(key, str("settings for one kind of layer (", quoted_for_message(name), ") are not supported"));
  }
  if (json->contains("partial_rotary_factor") && (*json)["partial_rotary_factor"] != 1.0) {
    keys.problem(key, "rotating a part of each head ('partial_rotary_factor') is not supported");
  }
  if (json->contains("rope_theta") && !(*json)["rope_theta"].is_null()) {
    settings.has_theta = keys.as_number(str(key, ".rope_theta"), (*json)["rope_theta"], rope.theta, 1.0);
  }
  if (rope.kind == RopeKind::kLlama3 || rope.kind == RopeKind::kYarn) {
    rope.original_max_position_embeddings = config.max_position_embeddings;
  }
  if (rope.kind != RopeKind::kDefault) read_rope_numbers(keys, key, *json, rope);
  return settings;
}

void read_rope(ConfigKeys& keys, ModelConfig& config, double default_theta) {
  config.rope.theta = default_theta;
  keys.number("rope_theta", config.rope.theta, 1.0);
  std::optional<RopeSettings> v4 = read_rope_settings(keys, "rope_scaling", config);
  std::optional<RopeSettings> v5 = read_rope_settings(keys, "rope_parameters", config);
  // A base outside the object serves where the object has none.
  for (auto* settings : {&v4, &v5}) {
    if (*settings && !(*settings)->has_theta) (*settings)->rope.theta = config.rope.theta;
  }
  // transformers takes rope_scaling when both are there and drops the other's base.
  if (v4 && v5 && v4->rope != v5->rope) {
    keys.problem("rope_scaling", "differs from 'rope_parameters'; remove one of them");
  }
  if (v4) config.rope = v4->rope;
  if (v5) config.rope = v5->rope;
}

void read_token_ids(ConfigKeys& keys, ModelConfig& config, const FamilyDefaults& defaults) {
  const auto token_id = [&](std::string_view key, const Json& json) -> std::optional<std::int64_t> {
    std::int64_t id = 0;
    // -1 is how some Llama configs say "none".
    if (!keys.as_integer(key, json, id, -1, kMaxVocabSize) || id < 0) return std::nullopt;
    return id;
  };
  if (keys.is_absent("bos_token_id")) config.bos_token_id = defaults.bos_token_id;
  if (keys.is_absent("pad_token_id")) config.pad_token_id = defaults.pad_token_id;
  if (keys.is_absent("eos_token_id") && defaults.eos_token_id) config.eos_token_ids = {*defaults.eos_token_id};
  if (const Json* json = keys.ask("bos_token_id")) config.bos_token_id = token_id("bos_token_id", *json);
  if (const Json* json = keys.ask("pad_token_id")) config.pad_token_id = token_id("pad_token_id", *json);
  const Json* eos = keys.ask("eos_token_id");
  if (eos == nullptr) return;
  const std::vector<Json> items = eos->is_array() ? eos->get<std::vector<Json>>() : std::vector<Json>{*eos};
  for (const Json& item : items) {
    if (const auto id = token_id("eos_token_id", item)) config.eos_token_ids.push_back(*id);
  }
}

void read_dtype(ConfigKeys& keys, ModelConfig& config) {
  const Json* v4 = keys.ask("torch_dtype");
  const Json* v5 = keys.ask("dtype");
  const Json* dtype = v5 != nullptr ? v5 : v4;
  if (dtype == nullptr) return;
  if (!dtype->is_string()) return keys.problem("dtype", str("found ", found_text(*dtype), ", expected a name"));
  config.dtype = dtype->get<std::string>();
  constexpr std::string_view kPrefix = "torch.";
  if (config.dtype.starts_with(kPrefix)) config.dtype.erase(0, kPrefix.size());
}

}  // namespace

void read_common(ConfigKeys& keys, ModelConfig& config, const FamilyDefaults& defaults) {
  config.rms_norm_eps = defaults.rms_norm_eps;
  config.max_position_embeddings = defaults.max_position_embeddings;
  read_sizes(keys, config, defaults);
  keys.number("rms_norm_eps", config.rms_norm_eps, 0.0);
  keys.number("initializer_range", config.initializer_range, 0.0);
  keys.boolean("tie_word_embeddings", config.tie_word_embeddings);
  read_rope(keys, config, defaults.rope_theta);
  read_token_ids(keys, config, defaults);
  read_dtype(keys, config);
  const Json* activation = keys.ask("hidden_act");
  if (activation != nullptr && *activation != "silu") {
    keys.problem("hidden_act", str("found ", found_text(*activation), ", supported: silu"));
  }
}

void read_experts(ConfigKeys& keys, ModelConfig& config, MoeConfig moe, double router_aux_loss_coef) {
  // The number of experts has three names, each of them read for every family.
  std::string first;
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    std::int64_t count = 0;
    if (!keys.integer(key, count, 1, kMaxExperts)) continue;
    if (!first.empty() && count != moe.num_experts) {
      keys.problem(key, str("found ", count, ", but '", first, "' is ", moe.num_experts));
    }
    if (first.empty()) first = key, moe.num_experts = count;
  }
  const bool any = keys.peek("num_local_experts") || keys.peek("num_experts") || keys.peek("n_routed_experts");
  if (!any) keys.problem("num_local_experts", "is missing");
  keys.required("num_experts_per_tok", moe.num_experts_per_tok, kMaxExperts);
  if (moe.num_experts_per_tok > moe.num_experts) {
    keys.problem("num_experts_per_tok", str("found ", moe.num_experts_per_tok,
                                            ", expected at most the number of experts (", moe.num_experts, ")"));
  }
  if (moe.moe_intermediate_size == 0) moe.moe_intermediate_size = config.intermediate_size;
  config.router_aux_loss_coef = router_aux_loss_coef;
  keys.number("router_aux_loss_coef", config.router_aux_loss_coef, 0.0);
  config.moe = std::move(moe);
}

void read_qwen_experts(ConfigKeys& keys, ModelConfig& config, MoeConfig moe) {
  constexpr double kAuxLossCoef = 0.001;
  moe.norm_topk_prob = false;
  keys.boolean("norm_topk_prob", moe.norm_topk_prob);
  keys.integer("moe_intermediate_size", moe.moe_intermediate_size, 1, kMaxIntermediateSize);
  keys.integer("decoder_sparse_step", moe.decoder_sparse_step, 1, kMaxLayers);
  keys.layers("mlp_only_layers", moe.mlp_only_layers, config.num_hidden_layers);
  read_experts(keys, config, std::move(moe), kAuxLossCoef);
}

void write_qwen_experts(const ModelConfig& config, Json& json) {
  const MoeConfig& moe = *config.moe;
  json["num_experts"] = moe.num_experts;
  json["num_experts_per_tok"] = moe.num_experts_per_tok;
  json["norm_topk_prob"] = moe.norm_topk_prob;
  json["moe_intermediate_size"] = moe.moe_intermediate_size;
  json["decoder_sparse_step"] = moe.decoder_sparse_step;
  json["mlp_only_layers"] = moe.mlp_only_layers;
  json["router_aux_loss_coef"] = config.router_aux_loss_coef;
}

void read_sliding_window(ConfigKeys& keys, ModelConfig& config, std::int64_t absent) {
  if (keys.is_absent("sliding_window")) config.sliding_window = absent;
  keys.integer("sliding_window", config.sliding_window, 1, kMaxPositions);
}

void read_layered_window(ConfigKeys& keys, ModelConfig& config) {
  constexpr std::int64_t kWindow = 4096, kMaxWindowLayers = 28;
  const Json* use = keys.peek("use_sliding_window");
  if (use == nullptr || *use == false) return;
  read_sliding_window(keys, config, kWindow);
  if (config.sliding_window == 0) return;
  const Json* types = keys.ask("layer_types");
  if (types != nullptr) {
    const auto num_layers = static_cast<std::size_t>(config.num_hidden_layers);
    if (!types->is_array() || types->size() != num_layers) {
      return keys.problem("layer_types", str("expected a list of ", num_layers, " kinds, one a layer"));
    }
    for (std::size_t n = 0; n < num_layers; ++n) {
      if ((*types)[n] == "full_attention") config.full_attention_layers.push_back(static_cast<std::int64_t>(n));
      if ((*types)[n] != "full_attention" && (*types)[n] != "sliding_attention") {
        keys.problem("layer_types",
                     str("found ", found_text((*types)[n]), ", expected full_attention or sliding_attention"));
      }
    }
    return;
  }
  std::int64_t max_window_layers = kMaxWindowLayers;
  if (const Json* found = keys.peek("max_window_layers")) {
    keys.as_integer("max_window_layers", *found, max_window_layers, 0, kMaxLayers);
  }
  for (std::int64_t n = 0; n < std::min(max_window_layers, config.num_hidden_layers); ++n) {
    config.full_attention_layers.push_back(n);
  }
}

void read_attention_bias(ConfigKeys& keys, ModelConfig& config) {
  keys.boolean("attention_bias", config.qkv_bias);
  config.o_bias = config.qkv_bias;
}

namespace {

Json rope_json(const RopeConfig& rope) {
  const auto kind = std::find_if(kRopeKinds.begin(), kRopeKinds.end(),
                                 [&](const auto& candidate) { return candidate.second == rope.kind; });
  Json json = {{"rope_theta", rope.theta}, {"rope_type", kind->first}};
  if (rope.kind == RopeKind::kDefault) return json;
  json["factor"] = rope.factor;
  if (rope.kind == RopeKind::kLinear) return json;
  json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
  if (rope.kind == RopeKind::kLlama3) {
    json["low_freq_factor"] = rope.low_freq_factor;
    json["high_freq_factor"] = rope.high_freq_factor;
    return json;
  }
  json["beta_fast"] = rope.beta_fast;
  json["beta_slow"] = rope.beta_slow;
  if (!rope.truncate) json["truncate"] = false;
  if (rope.attention_factor) json["attention_factor"] = *rope.attention_factor;
  if (rope.mscale) json["mscale"] = *rope.mscale;
  if (rope.mscale_all_dim) json["mscale_all_dim"] = *rope.mscale_all_dim;
  return json;
}

void write_window(const ModelConfig& config, Json& json) {
  if (config.sliding_window == 0) return;
  json["sliding_window"] = config.sliding_window;
  if (config.full_attention_layers.empty()) return;
  Json types = Json::array();
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    types.push_back(config.window_of(n) > 0 ? "sliding_attention" : "full_attention");
  }
  json["layer_types"] = types;
}

}  // namespace

void write_common(const ModelConfig& config, Json& json) {
  const auto or_null = [](const std::optional<std::int64_t>& id) { return id ? Json(*id) : Json(nullptr); };
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
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
  // transformers 4 knows only rope_theta and rope_scaling. Version 5 reads those too, and of both spellings the older
  // one wins, so scaled positions are written once.
  json["rope_theta"] = config.rope.theta;
  json[config.rope.kind == RopeKind::kDefault ? "rope_parameters" : "rope_scaling"] = rope_json(config.rope);
  if (!config.dtype.empty()) json["dtype"] = json["torch_dtype"] = config.dtype;
  write_window(config, json);
}

}  // namespace dagmoe
