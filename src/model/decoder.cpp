// Letters: T tokens, D hidden_size, H heads, d head_dim, F expert width, E experts, K chosen experts, V vocabulary, O =
// H d.
#include "model/decoder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "model/neftune.h"

namespace dagmoe {
namespace {

at::Tensor cast(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// Norm weights and rope tables stay in float whatever the activations are.
at::ScalarType statistics_dtype(at::ScalarType compute) { return compute == at::kDouble ? at::kDouble : at::kFloat; }

std::vector<at::Tensor> cast_all(const std::vector<at::Tensor>& tensors, at::ScalarType dtype) {
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const auto& tensor : tensors) result.push_back(cast(tensor, dtype));
  return result;
}

at::Tensor expert_ffn(const at::Tensor& x_RD, const Experts& experts, const std::vector<std::int64_t>& counts_E) {
  const auto dtype = x_RD.scalar_type();
  const at::Tensor gate_RF = grouped_linear(x_RD, cast_all(experts.gate_FD, dtype), counts_E);
  const at::Tensor up_RF = grouped_linear(x_RD, cast_all(experts.up_FD, dtype), counts_E);
  return grouped_linear(swiglu(gate_RF, up_RF), cast_all(experts.down_DF, dtype), counts_E);
}

at::Tensor dense_ffn(const at::Tensor& x_TD, const DecoderLayer& layer) {
  if (!layer.gate_bias_F.defined()) return expert_ffn(x_TD, layer.experts, {x_TD.size(0)});
  const auto dtype = x_TD.scalar_type();
  const auto linear = [dtype](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    return at::linear(x, cast(weight, dtype), cast(bias, dtype));
  };
  const at::Tensor gate_TF = linear(x_TD, layer.experts.gate_FD[0], layer.gate_bias_F),
                   up_TF = linear(x_TD, layer.experts.up_FD[0], layer.up_bias_F);
  return linear(swiglu(gate_TF, up_TF), layer.experts.down_DF[0], layer.down_bias_D);
}

at::Tensor shared_ffn(const at::Tensor& x_TD, const DecoderLayer& layer) {
  const at::Tensor out_TD = expert_ffn(x_TD, layer.shared_expert, {x_TD.size(0)});
  if (!layer.shared_gate_1D.defined()) return out_TD;
  return at::sigmoid(at::linear(x_TD, cast(layer.shared_gate_1D, x_TD.scalar_type()))) * out_TD;
}

// Attention of n new tokens over a cache that already holds `past` tokens and now the new ones too.
at::Tensor cached_attention(const at::Tensor& q_nHd, const at::Tensor& k_SHkd, const at::Tensor& v_SHkd,
                            std::int64_t past, std::int64_t window) {
  const auto n = q_nHd.size(0), S = k_SHkd.size(0), group = q_nHd.size(1) / k_SHkd.size(1);
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const at::Tensor k = heads_first(k_SHkd).repeat_interleave(group, 1),
                   v = heads_first(v_SHkd).repeat_interleave(group, 1);
  std::optional<at::Tensor> mask;
  if (n > 1 || (window > 0 && S > window)) {
    mask = at::ones({n, S}, q_nHd.options().dtype(at::kBool)).tril(past);
    if (window > 0) mask = mask->triu(past - window + 1);
  }
  return at::scaled_dot_product_attention(heads_first(q_nHd), k, v, mask).squeeze(0).transpose(0, 1);
}

}  // namespace

Decoder::Decoder(const ModelConfig& model_config)
    : config(model_config), layers(static_cast<std::size_t>(model_config.num_hidden_layers)) {
  const auto resize = [](Experts& experts, std::int64_t count) {
    const auto size = static_cast<std::size_t>(count);
    experts.gate_FD.resize(size), experts.up_FD.resize(size), experts.down_DF.resize(size);
  };
  for (std::size_t n = 0; n < layers.size(); ++n) {
    DecoderLayer& layer = layers[n];
    layer.is_moe = config.is_moe_layer(static_cast<std::int64_t>(n));
    resize(layer.experts, layer.is_moe ? config.moe->num_experts : 1);
    if (!layer.is_moe) continue;
    if (config.moe->shared_expert_intermediate_size > 0) resize(layer.shared_expert, 1);
    if (config.dag) layer.dag.resize(static_cast<std::size_t>(config.dag->num_iterations));
  }
}

namespace {

/// Collects parameters in the order of parameter_shapes(config).
class ParameterList {
 public:
  explicit ParameterList(const ModelConfig& config) : config_(config) {}

  void add(std::string name, at::Tensor& tensor) { named.push_back({std::move(name), &tensor}); }
  void add_if(bool is_there, std::string name, at::Tensor& tensor) {
    if (is_there) add(std::move(name), tensor);
  }

  void add_attention(const std::string& prefix, Attention& attention) {
    if (config_.mla) return add_latent_attention(prefix, attention);
    const bool has_norm = config_.qk_norm != QkNorm::kNone;
    add(prefix + "q_proj.weight", attention.q_proj_OD);
    add_if(config_.qkv_bias, prefix + "q_proj.bias", attention.q_bias_O);
    add(prefix + "k_proj.weight", attention.k_proj_OD);
    add_if(config_.qkv_bias, prefix + "k_proj.bias", attention.k_bias_O);
    add(prefix + "v_proj.weight", attention.v_proj_OD);
    add_if(config_.qkv_bias, prefix + "v_proj.bias", attention.v_bias_O);
    add(prefix + "o_proj.weight", attention.o_proj_DO);
    add_if(config_.o_bias, prefix + "o_proj.bias", attention.o_bias_D);
    add_if(has_norm, prefix + "q_norm.weight", attention.q_norm);
    add_if(has_norm, prefix + "k_norm.weight", attention.k_norm);
  }

  void add_expert(const std::string& prefix, Experts& experts, std::size_t index) {
    add(prefix + "gate_proj.weight", experts.gate_FD[index]);
    add(prefix + "up_proj.weight", experts.up_FD[index]);
    add(prefix + "down_proj.weight", experts.down_DF[index]);
  }

  void add_dense(const std::string& prefix, DecoderLayer& layer) {
    add(prefix + "gate_proj.weight", layer.experts.gate_FD[0]);
    add_if(config_.mlp_bias, prefix + "gate_proj.bias", layer.gate_bias_F);
    add(prefix + "up_proj.weight", layer.experts.up_FD[0]);
    add_if(config_.mlp_bias, prefix + "up_proj.bias", layer.up_bias_F);
    add(prefix + "down_proj.weight", layer.experts.down_DF[0]);
    add_if(config_.mlp_bias, prefix + "down_proj.bias", layer.down_bias_D);
  }

  void add_moe(const std::string& prefix, DecoderLayer& layer) {
    add(prefix + "gate.weight", layer.router_ED);
    add_if(config_.moe->router_bias, prefix + "gate.e_score_correction_bias", layer.router_bias_E);
    for (std::size_t e = 0; e < layer.experts.gate_FD.size(); ++e) {
      add_expert(str(prefix, "experts.", e, "."), layer.experts, e);
    }
    if (!layer.shared_expert.gate_FD.empty()) add_expert(prefix + "shared_expert.", layer.shared_expert, 0);
    const bool has_gate = !layer.shared_expert.gate_FD.empty() && config_.moe->shared_expert_gate;
    add_if(has_gate, prefix + "shared_expert_gate.weight", layer.shared_gate_1D);
    for (std::size_t l = 0; l < layer.dag.size(); ++l) {
      const std::string step = str(prefix, "dag.", l, ".");
      add(step + "norm.weight", layer.dag[l].norm_D);
      add(step + "down_proj.weight", layer.dag[l].down_GD);
      add(step + "edge_proj.weight", layer.dag[l].edge_G2G);
      add(step + "node_proj.weight", layer.dag[l].node_G2G);
      add(step + "up_proj.weight", layer.dag[l].up_DG);
    }
  }

  void add_layer(const std::string& prefix, DecoderLayer& layer) {
    add(prefix + "input_layernorm.weight", layer.input_norm_D);
    add_attention(prefix + "self_attn.", layer.attention);
    add(prefix + "post_attention_layernorm.weight", layer.post_attention_norm_D);
    layer.is_moe ? add_moe(prefix + "mlp.", layer) : add_dense(prefix + "mlp.", layer);
  }

  std::vector<NamedTensor> named;

 private:
  void add_latent_attention(const std::string& prefix, Attention& attention) {
    const bool has_q_latent = config_.mla->q_lora_rank > 0;
    add_if(!has_q_latent, prefix + "q_proj.weight", attention.q_proj_OD);
    add_if(has_q_latent, prefix + "q_a_proj.weight", attention.q_a_proj_RD);
    add_if(has_q_latent, prefix + "q_a_layernorm.weight", attention.q_a_norm_R);
    add_if(has_q_latent, prefix + "q_b_proj.weight", attention.q_b_proj_OR);
    add(prefix + "kv_a_proj_with_mqa.weight", attention.kv_a_proj_RD);
    add(prefix + "kv_a_layernorm.weight", attention.kv_a_norm_R);
    add(prefix + "kv_b_proj.weight", attention.kv_b_proj_OR);
    add(prefix + "o_proj.weight", attention.o_proj_DO);
  }

  const ModelConfig& config_;
};

}  // namespace

std::vector<NamedTensor> Decoder::parameters() {
  ParameterList list(config);
  list.add("model.embed_tokens.weight", embed_tokens_VD);
  for (std::size_t n = 0; n < layers.size(); ++n) list.add_layer(str("model.layers.", n, "."), layers[n]);
  list.add("model.norm.weight", norm_D);
  if (!config.tie_word_embeddings) list.add("lm_head.weight", lm_head_VD);
  return std::move(list.named);
}

RopeTables Decoder::rope_tables_at(const at::Tensor& position_ids_T) const {
  return rope_tables(config, position_ids_T, statistics_dtype(compute_dtype));
}

at::Tensor Decoder::embed(const ModelInput& input, const ForwardOptions& options) const {
  const at::Tensor embedded_TD = at::embedding(embed_tokens_VD, input.input_ids_T);
  if (options.neftune_alpha == 0.0) return cast(embedded_TD, compute_dtype);
  const at::Tensor noise_TD = neftune_noise(input.segment_offsets, config.hidden_size, options.neftune_alpha,
                                            options.noise_seed, options.first_sequence);
  // Added in float, so that bfloat16 rounds once.
  const auto dtype = statistics_dtype(compute_dtype);
  return cast(cast(embedded_TD, dtype) + noise_TD.to(embedded_TD.device(), dtype), compute_dtype);
}

LayerOutput Decoder::feed_forward(std::int64_t layer_index, const at::Tensor& hidden_TD,
                                  const at::Tensor& expert_ids_TK, const ForwardOptions& options) const {
  const DecoderLayer& layer = layers[static_cast<std::size_t>(layer_index)];
  const at::Tensor x_TD = rms_norm(hidden_TD, layer.post_attention_norm_D, config.rms_norm_eps);
  if (!layer.is_moe) return {hidden_TD + dense_ffn(x_TD, layer), {}};

  const Routing routed = route(x_TD, layer.router_ED, *config.moe, {layer.router_bias_E, expert_ids_TK});
  const RoutedRows rows = route_rows(routed.expert_ids_TK, config.moe->num_experts);
  const at::Tensor out_RD = expert_ffn(gather_routed(x_TD, rows), layer.experts, rows.counts_E);
  CombineInput input{hidden_TD, x_TD, ungather_routed(out_RD, rows), routed.weights_TK};
  if (options.on_combine) options.on_combine(layer_index, input, routed);
  at::Tensor next_TD = combine_experts(input, layer.dag, config.dag ? &*config.dag : nullptr, config.rms_norm_eps);
  if (!layer.shared_expert.gate_FD.empty()) next_TD = next_TD + shared_ffn(x_TD, layer);  // outside the DAG
  return {next_TD, routed};
}

LayerOutput Decoder::run_layer(std::int64_t layer_index, const at::Tensor& hidden_TD, const Sequences& sequences,
                               const at::Tensor& expert_ids_TK, const ForwardOptions& options) const {
  const DecoderLayer& layer = layers[static_cast<std::size_t>(layer_index)];
  const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
  const QueryKeyValue qkv = project_qkv(layer.attention, config, x_TD, sequences.rope);
  const at::Tensor attended_THd =
      segment_attention(qkv.q_THd, qkv.k_THkd, qkv.v_THkd, sequences.segment_offsets, config.window_of(layer_index));
  const at::Tensor next_TD = hidden_TD + project_output(layer.attention, config, attended_THd);
  if (options.on_module) options.on_module(str("model.layers.", layer_index, ".self_attn"), next_TD);
  LayerOutput output = feed_forward(layer_index, next_TD, expert_ids_TK, options);
  if (options.on_module) options.on_module(str("model.layers.", layer_index, ".mlp"), output.hidden_TD);
  return output;
}

LayerOutput Decoder::run_layer_recomputed(std::int64_t layer_index, const at::Tensor& hidden_TD,
                                          const std::shared_ptr<const Sequences>& sequences,
                                          const ForwardOptions& options) const {
  RecomputedLayer recomputed;
  recomputed.forward = [&](const at::Tensor& x_TD) { return run_layer(layer_index, x_TD, *sequences, {}, options); };
  recomputed.forward_again = [this, layer_index, sequences](const at::Tensor& x_TD, const at::Tensor& expert_ids_TK) {
    return run_layer(layer_index, x_TD, *sequences, expert_ids_TK, {});
  };
  DecoderLayer layer = layers[static_cast<std::size_t>(layer_index)];  // handles, because the list wants to change them
  ParameterList list(config);
  list.add_layer("", layer);
  for (const auto& [name, tensor] : list.named) {
    if (!tensor->requires_grad()) continue;
    recomputed.trained.push_back(*tensor);
    const bool is_behind_router = name.starts_with("mlp.") && !name.starts_with("mlp.gate.");
    recomputed.router_trains = recomputed.router_trains || !is_behind_router;
  }
  return run_recomputed(recomputed, hidden_TD);
}

ModelOutput Decoder::forward(const ModelInput& input, const ForwardOptions& options) const {
  const auto sequences =
      std::make_shared<const Sequences>(Sequences{rope_tables_at(input.position_ids_T), input.segment_offsets});
  ModelOutput output;
  at::Tensor hidden_TD = embed(input, options);
  if (options.on_module) options.on_module("model.embed_tokens", hidden_TD);
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    LayerOutput layer = options.recompute ? run_layer_recomputed(n, hidden_TD, sequences, options)
                                          : run_layer(n, hidden_TD, *sequences, {}, options);
    hidden_TD = layer.hidden_TD;
    if (layer.routing.logits_TE.defined()) output.routing.push_back(std::move(layer.routing));
  }
  output.hidden_TD = rms_norm(hidden_TD, norm_D, config.rms_norm_eps);
  if (options.on_module) options.on_module("model.norm", output.hidden_TD);
  return output;
}

KvCache Decoder::make_cache(std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  const auto options = at::TensorOptions(compute_dtype).device(embed_tokens_VD.device());
  for (std::size_t n = 0; n < layers.size(); ++n) {
    cache.keys.push_back(at::empty({capacity, config.num_key_value_heads, query_head_dim(config)}, options));
    cache.values.push_back(at::empty_like(cache.keys.back()));
  }
  return cache;
}

at::Tensor Decoder::forward_cached(const at::Tensor& input_ids_T, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const auto n = input_ids_T.size(0), past = cache.length;
  if (past + n > cache.capacity)
    throw InternalError(str("kv cache of ", cache.capacity, " tokens cannot take ", past + n));
  const RopeTables rope = rope_tables_at(at::arange(past, past + n, input_ids_T.options()));
  at::Tensor hidden_TD = cast(at::embedding(embed_tokens_VD, input_ids_T), compute_dtype);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
    const QueryKeyValue qkv = project_qkv(layer.attention, config, x_TD, rope);
    cache.keys[i].narrow(0, past, n).copy_(qkv.k_THkd);
    cache.values[i].narrow(0, past, n).copy_(qkv.v_THkd);
    const at::Tensor keys = cache.keys[i].narrow(0, 0, past + n), values = cache.values[i].narrow(0, 0, past + n);
    const std::int64_t window = config.window_of(static_cast<std::int64_t>(i));
    const at::Tensor attended_nHd = past == 0 ? segment_attention(qkv.q_THd, keys, values, {0, n}, window)
                                              : cached_attention(qkv.q_THd, keys, values, past, window);
    hidden_TD = hidden_TD + project_output(layer.attention, config, attended_nHd);
    hidden_TD = feed_forward(static_cast<std::int64_t>(i), hidden_TD, {}, {}).hidden_TD;
  }
  cache.length = past + n;
  return rms_norm(hidden_TD, norm_D, config.rms_norm_eps);
}

at::Tensor Decoder::output_weight() const {
  return cast(config.tie_word_embeddings ? embed_tokens_VD : lm_head_VD, compute_dtype);
}

at::Tensor Decoder::logits(const at::Tensor& hidden_XD) const { return at::linear(hidden_XD, output_weight()); }

namespace {

void initialize(Decoder& model, std::uint64_t seed, bool only_dag) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto shapes = parameter_shapes(model.config);
  auto parameters = model.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i].name;
    const bool is_dag = name.find(".mlp.dag.") != std::string::npos;
    if (only_dag && !is_dag) continue;
    at::Tensor value = at::empty(shapes[i].second, at::kFloat);
    if (name.ends_with("norm.weight")) {
      value.fill_(1.0);
    } else if (name.ends_with(".bias") || name.ends_with("_bias")) {
      value.zero_();
    } else if (is_dag && name.ends_with("up_proj.weight")) {
      value.zero_();
    } else {
      value.normal_(0.0, model.config.initializer_range, generator);
    }
    *parameters[i].tensor = value;
  }
}

}  // namespace

void initialize_parameters(Decoder& model, std::uint64_t seed) { initialize(model, seed, /*only_dag=*/false); }

void initialize_dag(Decoder& model, std::uint64_t seed) { initialize(model, seed, /*only_dag=*/true); }

void update_router_bias(Decoder& model, const ExpertCounts& counts, double rate) {
  std::size_t num_moe_layers = 0;
  for (DecoderLayer& layer : model.layers) {
    if (!layer.is_moe) continue;
    const std::size_t n = num_moe_layers++;
    if (!layer.router_bias_E.defined()) continue;
    if (n >= counts.counts_LE.size()) break;
    layer.router_bias_E = updated_router_bias(layer.router_bias_E, counts.counts_LE[n], rate);
  }
  if (num_moe_layers != counts.counts_LE.size()) {
    throw InternalError(
        str("router bias: counts of ", counts.counts_LE.size(), " layers for ", num_moe_layers, " with experts"));
  }
}

}  // namespace dagmoe
