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

// Attention of n new tokens over a cache that already holds `past` tokens and now the new ones too.
at::Tensor cached_attention(const at::Tensor& q_nHd, const at::Tensor& k_SHkd, const at::Tensor& v_SHkd,
                            std::int64_t past) {
  const auto n = q_nHd.size(0), S = k_SHkd.size(0), group = q_nHd.size(1) / k_SHkd.size(1);
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const at::Tensor k = heads_first(k_SHkd).repeat_interleave(group, 1),
                   v = heads_first(v_SHkd).repeat_interleave(group, 1);
  std::optional<at::Tensor> mask;
  if (n > 1) mask = at::ones({n, S}, q_nHd.options().dtype(at::kBool)).tril(past);
  return at::scaled_dot_product_attention(heads_first(q_nHd), k, v, mask).squeeze(0).transpose(0, 1);
}

}  // namespace

Decoder::Decoder(const ModelConfig& model_config)
    : config(model_config), layers(static_cast<std::size_t>(model_config.num_hidden_layers)) {
  for (auto& layer : layers) {
    const auto E = static_cast<std::size_t>(config.moe ? config.moe->num_experts : 1);
    layer.experts.gate_FD.resize(E), layer.experts.up_FD.resize(E), layer.experts.down_DF.resize(E);
    if (config.dag) layer.dag.resize(static_cast<std::size_t>(config.dag->num_iterations));
  }
}

std::vector<NamedTensor> Decoder::parameters() {
  std::vector<NamedTensor> named;
  const auto add = [&named](std::string name, at::Tensor& tensor) { named.push_back({std::move(name), &tensor}); };
  add("model.embed_tokens.weight", embed_tokens_VD);
  for (std::size_t n = 0; n < layers.size(); ++n) {
    DecoderLayer& layer = layers[n];
    const std::string prefix = str("model.layers.", n, ".");
    add(prefix + "input_layernorm.weight", layer.input_norm_D);
    add(prefix + "self_attn.q_proj.weight", layer.q_proj_OD);
    add(prefix + "self_attn.k_proj.weight", layer.k_proj_OD);
    add(prefix + "self_attn.v_proj.weight", layer.v_proj_OD);
    add(prefix + "self_attn.o_proj.weight", layer.o_proj_DO);
    add(prefix + "post_attention_layernorm.weight", layer.post_attention_norm_D);
    if (config.moe) add(prefix + "mlp.gate.weight", layer.router_ED);
    for (std::size_t e = 0; e < layer.experts.gate_FD.size(); ++e) {
      const std::string expert = config.moe ? str(prefix, "mlp.experts.", e, ".") : prefix + "mlp.";
      add(expert + "gate_proj.weight", layer.experts.gate_FD[e]);
      add(expert + "up_proj.weight", layer.experts.up_FD[e]);
      add(expert + "down_proj.weight", layer.experts.down_DF[e]);
    }
    for (std::size_t l = 0; l < layer.dag.size(); ++l) {
      const std::string step = str(prefix, "mlp.dag.", l, ".");
      add(step + "norm.weight", layer.dag[l].norm_D);
      add(step + "down_proj.weight", layer.dag[l].down_GD);
      add(step + "edge_proj.weight", layer.dag[l].edge_G2G);
      add(step + "node_proj.weight", layer.dag[l].node_G2G);
      add(step + "up_proj.weight", layer.dag[l].up_DG);
    }
  }
  add("model.norm.weight", norm_D);
  if (!config.tie_word_embeddings) add("lm_head.weight", lm_head_VD);
  return named;
}

Decoder::Rope Decoder::rope_tables(const at::Tensor& position_ids_T) const {
  const auto d = config.head_dim;
  const auto dtype = statistics_dtype(compute_dtype);
  // Inverse frequencies in float, as transformers computes them; the table's dtype follows the activations' statistics.
  const at::Tensor exponent = at::arange(0, d, 2, position_ids_T.options().dtype(at::kFloat)) / static_cast<double>(d);
  const at::Tensor inverse_frequency = 1.0 / at::pow(config.rope_theta, exponent);
  const at::Tensor angle_Td2 = position_ids_T.to(at::kFloat).unsqueeze(1) * inverse_frequency.unsqueeze(0);
  return {angle_Td2.cos().to(dtype), angle_Td2.sin().to(dtype)};
}

at::Tensor Decoder::feed_forward(const DecoderLayer& layer, const at::Tensor& hidden_TD,
                                 std::vector<Routing>* routing) const {
  const at::Tensor x_TD = rms_norm(hidden_TD, layer.post_attention_norm_D, config.rms_norm_eps);
  if (!config.moe) return hidden_TD + expert_ffn(x_TD, layer.experts, {x_TD.size(0)});

  Routing routed = route(x_TD, layer.router_ED, *config.moe);
  const RoutedRows rows = route_rows(routed.expert_ids_TK, config.moe->num_experts);
  const at::Tensor out_RD = expert_ffn(gather_routed(x_TD, rows), layer.experts, rows.counts_E);
  CombineInput input{hidden_TD, x_TD, ungather_routed(out_RD, rows), routed.weights_TK};
  const at::Tensor next_TD =
      combine_experts(input, layer.dag, config.dag ? &*config.dag : nullptr, config.rms_norm_eps);
  if (routing != nullptr) routing->push_back(std::move(routed));
  return next_TD;
}

ModelOutput Decoder::forward(const ModelInput& input) const {
  const auto T = input.input_ids_T.size(0), d = config.head_dim;
  const Rope rope = rope_tables(input.position_ids_T);
  ModelOutput output;
  at::Tensor hidden_TD = cast(at::embedding(embed_tokens_VD, input.input_ids_T), compute_dtype);
  for (const DecoderLayer& layer : layers) {
    const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
    const at::Tensor q_THd = dagmoe::rope(at::linear(x_TD, cast(layer.q_proj_OD, compute_dtype)).view({T, -1, d}),
                                          rope.cos_Td2, rope.sin_Td2);
    const at::Tensor k_THd = dagmoe::rope(at::linear(x_TD, cast(layer.k_proj_OD, compute_dtype)).view({T, -1, d}),
                                          rope.cos_Td2, rope.sin_Td2);
    const at::Tensor v_THd = at::linear(x_TD, cast(layer.v_proj_OD, compute_dtype)).view({T, -1, d});
    const at::Tensor attended_TO = segment_attention(q_THd, k_THd, v_THd, input.segment_offsets).reshape({T, -1});
    hidden_TD = hidden_TD + at::linear(attended_TO, cast(layer.o_proj_DO, compute_dtype));
    hidden_TD = feed_forward(layer, hidden_TD, &output.routing);
  }
  output.hidden_TD = rms_norm(hidden_TD, norm_D, config.rms_norm_eps);
  return output;
}

KvCache Decoder::make_cache(std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  const auto options = at::TensorOptions(compute_dtype).device(embed_tokens_VD.device());
  for (std::size_t n = 0; n < layers.size(); ++n) {
    cache.keys.push_back(at::empty({capacity, config.num_key_value_heads, config.head_dim}, options));
    cache.values.push_back(at::empty_like(cache.keys.back()));
  }
  return cache;
}

at::Tensor Decoder::forward_cached(const at::Tensor& input_ids_T, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const auto n = input_ids_T.size(0), d = config.head_dim, past = cache.length;
  if (past + n > cache.capacity)
    throw InternalError(str("kv cache of ", cache.capacity, " tokens cannot take ", past + n));
  const Rope rope = rope_tables(at::arange(past, past + n, input_ids_T.options()));
  at::Tensor hidden_TD = cast(at::embedding(embed_tokens_VD, input_ids_T), compute_dtype);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
    const at::Tensor q_THd = dagmoe::rope(at::linear(x_TD, cast(layer.q_proj_OD, compute_dtype)).view({n, -1, d}),
                                          rope.cos_Td2, rope.sin_Td2);
    cache.keys[i]
        .narrow(0, past, n)
        .copy_(dagmoe::rope(at::linear(x_TD, cast(layer.k_proj_OD, compute_dtype)).view({n, -1, d}), rope.cos_Td2,
                            rope.sin_Td2));
    cache.values[i].narrow(0, past, n).copy_(at::linear(x_TD, cast(layer.v_proj_OD, compute_dtype)).view({n, -1, d}));
    const at::Tensor keys = cache.keys[i].narrow(0, 0, past + n), values = cache.values[i].narrow(0, 0, past + n);
    const at::Tensor attended =
        past == 0 ? segment_attention(q_THd, keys, values, {0, n}) : cached_attention(q_THd, keys, values, past);
    hidden_TD = hidden_TD + at::linear(attended.reshape({n, -1}), cast(layer.o_proj_DO, compute_dtype));
    hidden_TD = feed_forward(layer, hidden_TD, nullptr);
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

}  // namespace dagmoe
