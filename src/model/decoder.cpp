// Letters: T tokens, D hidden_size, H heads, d head_dim, F expert width, E experts, K chosen experts, V vocabulary, O =
// H d.
#include "model/decoder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/text.h"
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

std::vector<ExpertFactors> factors_of(const std::vector<ExpertLora>& adapters, at::ScalarType dtype) {
  std::vector<ExpertFactors> factors;
  for (const ExpertLora& adapter : adapters)
    factors.push_back({cast(adapter.a_ERI, dtype), cast(adapter.b_EOR, dtype), adapter.scale});
  return factors;
}

ExpertMatrices matrices_of(const Experts& experts, at::ScalarType dtype) {
  return {cast_all(experts.gate_FD, dtype), cast_all(experts.up_FD, dtype), cast_all(experts.down_DF, dtype),
          factors_of(experts.gate_up_adapters, dtype), factors_of(experts.down_adapters, dtype)};
}

at::Tensor feed_forward_part(const at::Tensor& x_TD, const FeedForward& part, const AdapterPass& pass) {
  return linear(swiglu(linear(x_TD, part.gate_proj, pass), linear(x_TD, part.up_proj, pass)), part.down_proj, pass);
}

at::Tensor shared_ffn(const at::Tensor& x_TD, const DecoderLayer& layer, const AdapterPass& pass) {
  const at::Tensor out_TD = feed_forward_part(x_TD, layer.shared_expert, pass);
  if (!layer.shared_gate.weight.defined()) return out_TD;
  return at::sigmoid(linear(x_TD, layer.shared_gate, pass)) * out_TD;
}

}  // namespace

Decoder::Decoder(const ModelConfig& model_config)
    : config(model_config), layers(static_cast<std::size_t>(model_config.num_hidden_layers)) {
  for (std::size_t n = 0; n < layers.size(); ++n) {
    DecoderLayer& layer = layers[n];
    layer.is_moe = config.is_moe_layer(static_cast<std::int64_t>(n));
    if (!layer.is_moe) continue;
    const auto E = static_cast<std::size_t>(config.moe->num_experts);
    layer.experts.gate_FD.resize(E), layer.experts.up_FD.resize(E), layer.experts.down_DF.resize(E);
    layer.has_shared_expert = config.moe->shared_expert_intermediate_size > 0;
    if (config.dag) layer.dag.resize(static_cast<std::size_t>(config.dag->num_iterations));
  }
}

namespace {

/// Collects parameters in the order of parameter_shapes(config).
class ParameterList {
 public:
  explicit ParameterList(const ModelConfig& config) : config_(config) {}

  void add(std::string name, at::Tensor& tensor) { named.push_back({std::move(name), &tensor}); }
  void add_linear(const std::string& name, Linear& linear, bool has_bias = false) {
    linears.push_back({name, &linear});
    add(name + ".weight", linear.weight);
    add_if(has_bias, name + ".bias", linear.bias);
  }
  void add_if(bool is_there, std::string name, at::Tensor& tensor) {
    if (is_there) add(std::move(name), tensor);
  }

  void add_attention(const std::string& prefix, Attention& attention) {
    if (config_.mla) return add_latent_attention(prefix, attention);
    const bool has_norm = config_.qk_norm != QkNorm::kNone;
    add_linear(prefix + "q_proj", attention.q_proj, config_.qkv_bias);
    add_linear(prefix + "k_proj", attention.k_proj, config_.qkv_bias);
    add_linear(prefix + "v_proj", attention.v_proj, config_.qkv_bias);
    add_linear(prefix + "o_proj", attention.o_proj, config_.o_bias);
    add_if(has_norm, prefix + "q_norm.weight", attention.q_norm);
    add_if(has_norm, prefix + "k_norm.weight", attention.k_norm);
  }

  void add_expert(const std::string& prefix, Experts& experts, std::size_t index) {
    add(prefix + "gate_proj.weight", experts.gate_FD[index]);
    add(prefix + "up_proj.weight", experts.up_FD[index]);
    add(prefix + "down_proj.weight", experts.down_DF[index]);
  }

  void add_feed_forward(const std::string& prefix, FeedForward& part, bool has_bias) {
    add_linear(prefix + "gate_proj", part.gate_proj, has_bias);
    add_linear(prefix + "up_proj", part.up_proj, has_bias);
    add_linear(prefix + "down_proj", part.down_proj, has_bias);
  }

  void add_moe(const std::string& prefix, DecoderLayer& layer) {
    add_linear(prefix + "gate", layer.router);
    add_if(config_.moe->router_bias, prefix + "gate.e_score_correction_bias", layer.router_bias_E);
    for (std::size_t e = 0; e < layer.experts.gate_FD.size(); ++e) {
      add_expert(str(prefix, "experts.", e, "."), layer.experts, e);
    }
    if (layer.has_shared_expert) {
      add_feed_forward(prefix + "shared_expert.", layer.shared_expert, /*has_bias=*/false);
      if (config_.moe->shared_expert_gate) add_linear(prefix + "shared_expert_gate", layer.shared_gate);
    }
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
    layer.is_moe ? add_moe(prefix + "mlp.", layer) : add_feed_forward(prefix + "mlp.", layer.dense, config_.mlp_bias);
  }

  std::vector<NamedTensor> named;
  std::vector<NamedLinear> linears;

 private:
  void add_latent_attention(const std::string& prefix, Attention& attention) {
    const bool has_q_latent = config_.mla->q_lora_rank > 0;
    if (has_q_latent) {
      add_linear(prefix + "q_a_proj", attention.q_a_proj);
      add(prefix + "q_a_layernorm.weight", attention.q_a_norm_R);
      add_linear(prefix + "q_b_proj", attention.q_b_proj);
    } else {
      add_linear(prefix + "q_proj", attention.q_proj);
    }
    add_linear(prefix + "kv_a_proj_with_mqa", attention.kv_a_proj);
    add(prefix + "kv_a_layernorm.weight", attention.kv_a_norm_R);
    add_linear(prefix + "kv_b_proj", attention.kv_b_proj);
    add_linear(prefix + "o_proj", attention.o_proj);
  }

  const ModelConfig& config_;
};

}  // namespace

namespace {

ParameterList parameter_list(Decoder& model) {
  ParameterList list(model.config);
  list.add("model.embed_tokens.weight", model.embed_tokens_VD);
  for (std::size_t n = 0; n < model.layers.size(); ++n) list.add_layer(str("model.layers.", n, "."), model.layers[n]);
  list.add("model.norm.weight", model.norm_D);
  if (!model.config.tie_word_embeddings) list.add_linear("lm_head", model.lm_head);
  return list;
}

void add_mixture_tensors(const std::string& module, Linear& linear, bool buffers, std::vector<NamedTensor>& named) {
  for (MixtureAdapter& adapter : linear.mixtures) {
    for (const AdapterTensor& part : adapter_tensors(adapter)) {
      if (part.is_buffer == buffers) named.push_back({module + "." + part.name, part.tensor});
    }
  }
}

void add_linear_adapters(const std::string& module, Linear& linear, std::vector<NamedTensor>& named) {
  for (LoraAdapter& adapter : linear.adapters) {
    named.push_back({module + ".lora_A.weight", &adapter.a_RI});
    named.push_back({module + ".lora_B.weight", &adapter.b_OR});
    if (adapter.magnitude_O.defined()) named.push_back({module + ".lora_magnitude_vector", &adapter.magnitude_O});
  }
  add_mixture_tensors(module, linear, /*buffers=*/false, named);
}

void add_expert_adapters(const std::string& module, std::vector<ExpertLora>& adapters,
                         std::vector<NamedTensor>& named) {
  for (ExpertLora& adapter : adapters) {
    named.push_back({module + ".lora_A.weight", &adapter.a_ERI});
    named.push_back({module + ".lora_B.weight", &adapter.b_EOR});
  }
}

void add_layer_adapters(const std::string& prefix, Experts& experts, std::vector<NamedTensor>& named) {
  add_expert_adapters(prefix + "mlp.experts.gate_up_proj", experts.gate_up_adapters, named);
  add_expert_adapters(prefix + "mlp.experts.down_proj", experts.down_adapters, named);
}

}  // namespace

std::vector<NamedTensor> Decoder::parameters() { return parameter_list(*this).named; }

std::vector<NamedLinear> Decoder::linears() { return parameter_list(*this).linears; }

std::vector<NamedTensor> Decoder::adapter_parameters() {
  std::vector<NamedTensor> named;
  for (auto& [module, linear] : linears()) add_linear_adapters(module, *linear, named);
  for (std::size_t n = 0; n < layers.size(); ++n)
    add_layer_adapters(str("model.layers.", n, "."), layers[n].experts, named);
  return named;
}

std::vector<NamedTensor> Decoder::adapter_buffers() {
  std::vector<NamedTensor> named;
  for (auto& [module, linear] : linears()) {
    for (LoraAdapter& adapter : linear->adapters) {
      if (!adapter.initial_a_RI.defined()) continue;
      named.push_back({module + ".lora_A.initial", &adapter.initial_a_RI});
      named.push_back({module + ".lora_B.initial", &adapter.initial_b_OR});
    }
    add_mixture_tensors(module, *linear, /*buffers=*/true, named);
  }
  return named;
}

std::vector<NamedTensor> Decoder::all_parameters() {
  std::vector<NamedTensor> named = parameters();
  for (auto& parameter : adapter_parameters()) named.push_back(std::move(parameter));
  return named;
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
                                  const at::Tensor& expert_ids_TK, const AdapterPass& pass,
                                  const ForwardOptions& options) const {
  const DecoderLayer& layer = layers[static_cast<std::size_t>(layer_index)];
  const at::Tensor x_TD = rms_norm(hidden_TD, layer.post_attention_norm_D, config.rms_norm_eps);
  if (!layer.is_moe) return {hidden_TD + feed_forward_part(x_TD, layer.dense, pass), {}};

  const at::Tensor router_ED = adapted_weight(layer.router.weight, layer.router.adapters);
  const Routing routed = route(x_TD, router_ED, *config.moe, {layer.router_bias_E, expert_ids_TK});
  const RoutedRows rows = route_rows(routed.expert_ids_TK, config.moe->num_experts);
  const at::Tensor out_TKD = expert_ffn(x_TD, rows, matrices_of(layer.experts, x_TD.scalar_type()));
  CombineInput input{hidden_TD, x_TD, out_TKD, routed.weights_TK};
  if (options.on_combine) options.on_combine(layer_index, input, routed);
  at::Tensor next_TD = combine_experts(input, layer.dag, config.dag ? &*config.dag : nullptr, config.rms_norm_eps);
  if (layer.has_shared_expert) next_TD = next_TD + shared_ffn(x_TD, layer, pass);  // outside the DAG
  return {next_TD, routed};
}

LayerOutput Decoder::run_layer(std::int64_t layer_index, const at::Tensor& hidden_TD, const Sequences& sequences,
                               const at::Tensor& expert_ids_TK, const ForwardOptions& options) const {
  const DecoderLayer& layer = layers[static_cast<std::size_t>(layer_index)];
  const AdapterPass pass = sequences.adapter_pass(options);
  const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
  const QueryKeyValue qkv = project_qkv(layer.attention, config, x_TD, sequences.rope, pass);
  const at::Tensor attended_THd =
      segment_attention(qkv.q_THd, qkv.k_THkd, qkv.v_THkd, sequences.segments, config.window_of(layer_index));
  const at::Tensor next_TD = hidden_TD + project_output(layer.attention, config, attended_THd, pass);
  if (options.on_module) options.on_module(str("model.layers.", layer_index, ".self_attn"), next_TD);
  LayerOutput output = feed_forward(layer_index, next_TD, expert_ids_TK, pass, options);
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
  for (auto& [module, linear] : list.linears) add_linear_adapters(module, *linear, list.named);
  add_layer_adapters("", layer.experts, list.named);
  for (const auto& [name, tensor] : list.named) {
    if (!tensor->requires_grad()) continue;
    recomputed.trained.push_back(*tensor);
    const bool is_behind_router = name.starts_with("mlp.") && !name.starts_with("mlp.gate.");
    recomputed.router_trains = recomputed.router_trains || !is_behind_router;
  }
  return run_recomputed(recomputed, hidden_TD);
}

namespace {

// Of every token: what a balance or an expert's load is made of.
Routing of_tokens(const Routing& routing, const at::Tensor& row_of_token_N) {
  const auto spread = [&](const at::Tensor& x_TX) { return x_TX.index_select(0, row_of_token_N); };
  Routing result = routing;
  result.logits_TE = spread(routing.logits_TE);
  result.expert_ids_TK = spread(routing.expert_ids_TK);
  result.weights_TK = spread(routing.weights_TK);
  return result;
}

}  // namespace

ModelOutput Decoder::forward(const ModelInput& input, const ForwardOptions& options) const {
  if (!input.segment_prefixes.empty() && (options.neftune_alpha > 0 || options.adapter_dropout))
    throw InternalError("noise and dropout belong to one sequence; they cannot be in a beginning that several share");
  const auto sequences = std::make_shared<const Sequences>(Sequences{rope_tables_at(input.position_ids_T),
                                                                     {input.segment_offsets, input.segment_prefixes},
                                                                     options.adapter_dropout,
                                                                     options.noise_seed,
                                                                     options.first_sequence,
                                                                     options.adapter_balance_weight});
  ModelOutput output;
  at::Tensor hidden_TD = embed(input, options);
  if (options.on_module) options.on_module("model.embed_tokens", hidden_TD);
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) {
    LayerOutput layer = options.recompute(n) ? run_layer_recomputed(n, hidden_TD, sequences, options)
                                             : run_layer(n, hidden_TD, *sequences, {}, options);
    hidden_TD = layer.hidden_TD;
    if (!layer.routing.logits_TE.defined()) continue;
    output.routing.push_back(input.row_of_token_N.defined() ? of_tokens(layer.routing, input.row_of_token_N)
                                                            : std::move(layer.routing));
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

namespace {

// Which rows of a pass go to which rows of the cache; undefined when none does.
struct KeptRows {
  explicit KeptRows(const ContextInput& input) {
    std::vector<std::int64_t> from, to;
    for (const ContextInput::Kept& kept : input.kept) {
      for (std::int64_t i = 0; i < kept.count; ++i) {
        from.push_back(kept.begin + i);
        to.push_back(kept.cache_begin + i);
      }
    }
    if (from.empty()) return;
    from_N = at::tensor(from, at::kLong).to(input.input_ids_T.device());
    to_N = at::tensor(to, at::kLong).to(input.input_ids_T.device());
  }
  at::Tensor from_N, to_N;
};

}  // namespace

at::Tensor Decoder::forward_in_context(const ContextInput& input, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const RopeTables rope = rope_tables_at(input.position_ids_T);
  const KeptRows kept(input);
  const at::Tensor rows_R = at::tensor(input.rows, at::kLong).to(input.input_ids_T.device());
  at::Tensor hidden_TD = cast(at::embedding(embed_tokens_VD, input.input_ids_T), compute_dtype);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    const at::Tensor x_TD = rms_norm(hidden_TD, layer.input_norm_D, config.rms_norm_eps);
    const QueryKeyValue qkv = project_qkv(layer.attention, config, x_TD, rope);
    const bool is_last = i + 1 == layers.size();
    at::Tensor attended_THd;
    if (!is_last || !input.rows.empty())
      attended_THd = context_attention(qkv.q_THd, qkv.k_THkd, qkv.v_THkd, cache.keys[i], cache.values[i],
                                       input.segments, config.window_of(static_cast<std::int64_t>(i)));
    if (kept.from_N.defined()) {
      cache.keys[i].index_copy_(0, kept.to_N, qkv.k_THkd.index_select(0, kept.from_N));
      cache.values[i].index_copy_(0, kept.to_N, qkv.v_THkd.index_select(0, kept.from_N));
    }
    if (is_last) {
      if (input.rows.empty()) return at::empty({0, config.hidden_size}, hidden_TD.options());
      hidden_TD = hidden_TD.index_select(0, rows_R);
      attended_THd = attended_THd.index_select(0, rows_R);
    }
    hidden_TD = hidden_TD + project_output(layer.attention, config, attended_THd);
    hidden_TD = feed_forward(static_cast<std::int64_t>(i), hidden_TD, {}, {}, {}).hidden_TD;
  }
  return rms_norm(hidden_TD, norm_D, config.rms_norm_eps);
}

at::Tensor Decoder::forward_cached(const at::Tensor& input_ids_T, KvCache& cache) const {
  const auto n = input_ids_T.size(0), past = cache.length;
  if (past + n > cache.capacity)
    throw InternalError(str("kv cache of ", cache.capacity, " tokens cannot take ", past + n));
  ContextInput input = {.input_ids_T = input_ids_T,
                        .position_ids_T = at::arange(past, past + n, input_ids_T.options()),
                        .segments = {{.begin = 0, .count = n}},
                        .kept = {{.begin = 0, .count = n, .cache_begin = past}},
                        .rows = std::vector<std::int64_t>(static_cast<std::size_t>(n))};
  if (past > 0) input.segments.front().context = {{.is_cached = true, .begin = 0, .count = past}};
  std::iota(input.rows.begin(), input.rows.end(), std::int64_t{0});
  const at::Tensor hidden_TD = forward_in_context(input, cache);
  cache.length = past + n;
  return hidden_TD;
}

at::Tensor Decoder::output_weight() const {
  if (config.tie_word_embeddings) return cast(embed_tokens_VD, compute_dtype);
  return cast(adapted_weight(lm_head.weight, lm_head.adapters), compute_dtype);
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

void update_adapter_bias(Decoder& model, const RankCounts& counts, double rate) {
  for (auto& [module, linear] : model.linears()) {
    for (MixtureAdapter& adapter : linear->mixtures) {
      auto* smora = std::get_if<Smora>(&adapter.tensors);
      const auto found = counts.find(adapter.id);
      if (smora == nullptr || found == counts.end()) continue;
      smora->bias_R = updated_smora_bias(smora->bias_R, found->second, rate);
    }
  }
}

}  // namespace dagmoe
