#include "model/config.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/problems.h"
#include "base/text.h"
#include "model/families.h"

namespace dagmoe {
namespace {

// Settings that would change the result and that no code here follows. They stay among the extra keys when harmless.
void refuse_unsupported(ConfigKeys& keys) {
  const auto refuse_unless = [&](std::string_view key, const Json& harmless, std::string_view reason) {
    if (!keys.was_asked(key)) keys.refuse_unless(key, harmless, reason);
  };
  refuse_unless("attention_bias", false, "this family has no biases in attention");
  refuse_unless("mlp_bias", false, "this family has no biases in the feed-forward layers");
  refuse_unless("router_bias", false, "this family's router has no bias; 'model_type' 'dagmoe' has one");
  refuse_unless("partial_rotary_factor", 1.0, "rotating a part of each head is not supported");
  if (keys.peek("quantization_config") != nullptr) {
    keys.problem("quantization_config", "quantized weights are not supported; use the unquantized model");
  }
}

void warn_of_ignored(const ConfigKeys& keys, const std::string& where) {
  for (const char* key : {"attention_dropout", "router_jitter_noise"}) {
    const Json* found = keys.peek(key);
    if (found != nullptr && *found != 0.0) log_warning(str(where, ": '", key, "' has no effect here"));
  }
}

// Null when the family is unknown: how its other keys are spelled is then unknown too.
const Family* read_model_type(ConfigKeys& keys) {
  const std::string known = join(family_names(), ", ");
  const Json* type = keys.ask("model_type");
  keys.ask("architectures");
  if (type == nullptr) {
    keys.problem("model_type", "is missing; known: " + known);
    return nullptr;
  }
  const Family* family = type->is_string() ? find_family(type->get<std::string>()) : nullptr;
  if (family == nullptr) {
    const std::string remote =
        keys.peek("auto_map") ? " (its code lies in the folder, 'auto_map', and is not run)" : "";
    const std::string hint =
        type->is_string() ? did_you_mean(type->get<std::string>(), family_names()) : "; known: " + known;
    keys.problem("model_type", str("found ", found_text(*type), remote, hint));
  }
  return family;
}

using TensorShapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

void add_latent_attention(const ModelConfig& config, const std::string& attention, TensorShapes& shapes) {
  const MlaConfig& mla = *config.mla;
  const std::int64_t D = config.hidden_size, H = config.num_attention_heads;
  const std::int64_t q_rows = H * (mla.qk_nope_head_dim + mla.qk_rope_head_dim);
  if (mla.q_lora_rank == 0) {
    shapes.push_back({attention + "q_proj.weight", {q_rows, D}});
  } else {
    shapes.push_back({attention + "q_a_proj.weight", {mla.q_lora_rank, D}});
    shapes.push_back({attention + "q_a_layernorm.weight", {mla.q_lora_rank}});
    shapes.push_back({attention + "q_b_proj.weight", {q_rows, mla.q_lora_rank}});
  }
  shapes.push_back({attention + "kv_a_proj_with_mqa.weight", {mla.kv_lora_rank + mla.qk_rope_head_dim, D}});
  shapes.push_back({attention + "kv_a_layernorm.weight", {mla.kv_lora_rank}});
  shapes.push_back({attention + "kv_b_proj.weight", {H * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank}});
  shapes.push_back({attention + "o_proj.weight", {D, H * mla.v_head_dim}});
}

void add_attention(const ModelConfig& config, const std::string& layer, TensorShapes& shapes) {
  const std::int64_t D = config.hidden_size, d = config.head_dim;
  const std::int64_t q_rows = config.num_attention_heads * d, kv_rows = config.num_key_value_heads * d;
  const std::string attention = layer + "self_attn.";
  shapes.push_back({layer + "input_layernorm.weight", {D}});
  if (config.mla) {
    add_latent_attention(config, attention, shapes);
  } else {
    const auto add_linear = [&](const char* name, std::int64_t out, std::int64_t in, bool has_bias) {
      shapes.push_back({str(attention, name, ".weight"), {out, in}});
      if (has_bias) shapes.push_back({str(attention, name, ".bias"), {out}});
    };
    add_linear("q_proj", q_rows, D, config.qkv_bias);
    add_linear("k_proj", kv_rows, D, config.qkv_bias);
    add_linear("v_proj", kv_rows, D, config.qkv_bias);
    add_linear("o_proj", D, q_rows, config.o_bias);
    if (config.qk_norm != QkNorm::kNone) {
      const bool is_per_head = config.qk_norm == QkNorm::kPerHead;
      shapes.push_back({attention + "q_norm.weight", {is_per_head ? d : q_rows}});
      shapes.push_back({attention + "k_norm.weight", {is_per_head ? d : kv_rows}});
    }
  }
  shapes.push_back({layer + "post_attention_layernorm.weight", {D}});
}

void add_swiglu(const std::string& prefix, std::int64_t F, std::int64_t D, bool has_bias, TensorShapes& shapes) {
  const auto add_linear = [&](const char* name, std::int64_t out, std::int64_t in) {
    shapes.push_back({str(prefix, name, ".weight"), {out, in}});
    if (has_bias) shapes.push_back({str(prefix, name, ".bias"), {out}});
  };
  add_linear("gate_proj", F, D);
  add_linear("up_proj", F, D);
  add_linear("down_proj", D, F);
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

void add_experts(const ModelConfig& config, const std::string& layer, TensorShapes& shapes) {
  const MoeConfig& moe = *config.moe;
  const std::int64_t D = config.hidden_size;
  shapes.push_back({layer + "mlp.gate.weight", {moe.num_experts, D}});
  if (moe.router_bias) shapes.push_back({layer + "mlp.gate.e_score_correction_bias", {moe.num_experts}});
  for (std::int64_t e = 0; e < moe.num_experts; ++e) {
    add_swiglu(str(layer, "mlp.experts.", e, "."), moe.moe_intermediate_size, D, /*has_bias=*/false, shapes);
  }
  if (moe.shared_expert_intermediate_size > 0) {
    add_swiglu(layer + "mlp.shared_expert.", moe.shared_expert_intermediate_size, D, /*has_bias=*/false, shapes);
    if (moe.shared_expert_gate) shapes.push_back({layer + "mlp.shared_expert_gate.weight", {1, D}});
  }
  if (config.dag) add_dag(config, layer, shapes);
}

// `experts_per_layer`: how many of a layer's routed experts count.
std::int64_t count_parameters(const ModelConfig& config, std::int64_t experts_per_layer) {
  constexpr std::string_view kExperts = ".mlp.experts.";
  std::int64_t total = 0;
  for (const auto& [name, shape] : parameter_shapes(config)) {
    const auto at = name.find(kExperts);
    if (at != std::string::npos && std::stoll(name.substr(at + kExperts.size())) >= experts_per_layer) continue;
    std::int64_t count = 1;
    for (const std::int64_t size : shape) count *= size;
    total += count;
  }
  return total;
}

}  // namespace

bool ModelConfig::is_moe_layer(std::int64_t layer) const {
  if (!moe || layer < moe->first_k_dense_replace || (layer + 1) % moe->decoder_sparse_step != 0) return false;
  return std::find(moe->mlp_only_layers.begin(), moe->mlp_only_layers.end(), layer) == moe->mlp_only_layers.end();
}

std::int64_t ModelConfig::window_of(std::int64_t layer) const {
  const bool is_full =
      std::find(full_attention_layers.begin(), full_attention_layers.end(), layer) != full_attention_layers.end();
  return is_full ? 0 : sliding_window;
}

ModelConfig parse_model_config(const Json& json, const std::string& where) {
  if (!json.is_object()) throw InputError(str(where, ": found ", json.type_name(), ", expected an object"));
  std::vector<std::string> problems;
  ConfigKeys keys(json, "", problems);
  ModelConfig config;
  if (const Family* family = read_model_type(keys)) {
    config.model_type = config.base_model_type = family->model_type;
    family->read(keys, config);
  }
  refuse_unsupported(keys);
  throw_problems(where, problems);
  warn_of_ignored(keys, where);
  config.extra = keys.rest();
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  return parse_model_config(read_json_file(path), path.string());
}

Json model_config_json(const ModelConfig& config) {
  const Family* family = find_family(config.model_type);
  if (family == nullptr) throw InternalError("no family '" + config.model_type + "'");
  Json json = config.extra;
  json["architectures"] = {family->architecture};
  json["model_type"] = config.model_type;
  write_common(config, json);
  family->write(config, json);
  // Keys in alphabetical order, as transformers writes them.
  std::map<std::string, Json> sorted;
  for (const auto& [key, value] : json.items()) sorted[key] = value;
  Json ordered = Json::object();
  auto& members = static_cast<Json::object_t::Container&>(ordered.get_ref<Json::object_t&>());
  for (auto& [key, value] : sorted) members.emplace_back(key, std::move(value));
  return ordered;
}

std::vector<std::pair<std::string, std::vector<std::int64_t>>> parameter_shapes(const ModelConfig& config) {
  TensorShapes shapes;
  shapes.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    const std::string layer = str("model.layers.", n, ".");
    add_attention(config, layer, shapes);
    if (config.is_moe_layer(n)) {
      add_experts(config, layer, shapes);
    } else {
      add_swiglu(layer + "mlp.", config.intermediate_size, config.hidden_size, config.mlp_bias, shapes);
    }
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
