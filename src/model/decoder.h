#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "model/attention.h"
#include "model/combine.h"
#include "model/config.h"
#include "model/linear.h"
#include "model/losses.h"
#include "model/recompute.h"
#include "model/router.h"

namespace dagmoe {

/// Whole sequences back to back: T rows, sequence s is [offsets[s], offsets[s+1]). Attention never leaves a sequence.
struct ModelInput {
  at::Tensor input_ids_T, position_ids_T;  ///< int64
  std::vector<std::int64_t> segment_offsets;
  /// Where sequences share their beginning (kernels/segments.h): the segment that each goes on from, and which row each
  /// token of the sequences is in, int64. Noise, dropout and adapters that are mixtures count tokens and cannot be
  /// used.
  std::vector<std::int64_t> segment_prefixes = {};
  at::Tensor row_of_token_N = {};
};

/// What a forward pass does besides computing hidden states.
struct ForwardOptions {
  /// Gets each module's checkpoint name ("model.embed_tokens", "model.layers.3.self_attn", "model.layers.3.mlp",
  /// "model.norm") and what the stream is behind it, in order: to find where a value stops being finite.
  std::function<void(const std::string& module, const at::Tensor& output_TD)> on_module = {};
  /// Gets what each MoE layer combines: to analyse the learned graph.
  std::function<void(std::int64_t layer, const CombineInput& input, const Routing& routing)> on_combine = {};
  /// Of these layers only the input and the expert ids are kept; the backward pass runs them again, with the same
  /// experts. The decoder must then outlive the backward pass. The functions above are called in the forward pass
  /// alone.
  LayersToRecompute recompute = false;
  /// Above 0: noise on the embeddings (neftune.h), a function of `noise_seed` and of each sequence's number in the
  /// step; that of the batch's first is `first_sequence`.
  double neftune_alpha = 0.0;
  std::uint64_t noise_seed = 0;
  std::int64_t first_sequence = 0;
  /// Whether adapters drop inputs, by the same two numbers.
  bool adapter_dropout = false;
  /// What the balance loss of each S'MoRE adapter weighs in the gradient (AdapterPass::balance_weight).
  double adapter_balance_weight = 0.0;
  /// Gets what adapters that are mixtures choose, in the forward pass alone.
  AdapterUse* adapter_use = nullptr;
};

struct ModelOutput {
  at::Tensor hidden_TD;          ///< after the last norm; logits only where needed
  std::vector<Routing> routing;  ///< one per MoE layer, in order; of every token of the sequences
};

/// Keys and values computed earlier; one entry a layer, [capacity, kv heads, d]. What lies in which row is the caller's
/// business; `length` is used by forward_cached alone, which fills the rows in order.
struct KvCache {
  std::vector<at::Tensor> keys, values;
  std::int64_t length = 0;
  std::int64_t capacity = 0;
};

/// A pass over segments that go on from others, in the same pass or in the cache (kernels/ops.h).
struct ContextInput {
  at::Tensor input_ids_T, position_ids_T;  ///< int64
  std::vector<ContextSegment> segments;
  /// Rows [begin, begin + count) of the pass whose keys and values are kept in the cache from row cache_begin on.
  struct Kept {
    std::int64_t begin = 0, count = 0, cache_begin = 0;
  };
  std::vector<Kept> kept = {};
  std::vector<std::int64_t> rows = {};  ///< whose hidden states are wanted, rising
};

/// A parameter by its checkpoint name ("model.layers.3.mlp.dag.1.up_proj.weight"), in the order of the forward pass.
struct NamedTensor {
  std::string name;
  at::Tensor* tensor;
};

/// A linear layer by its module name ("model.layers.3.self_attn.q_proj").
struct NamedLinear {
  std::string name;
  Linear* linear;
};

/// A SwiGLU feed-forward part, W2 (SiLU(W1 x) * W3 x), with biases in some Llamas.
struct FeedForward {
  Linear gate_proj, up_proj, down_proj;
};

/// The routed experts of one layer. Separate weights, so that each can stay in its file, be frozen, or train alone.
struct Experts {
  std::vector<at::Tensor> gate_FD, up_FD, down_DF;
  /// Of [gate; up], whose rows lie one after the other, and of down, for all experts together, as peft has them.
  std::vector<ExpertLora> gate_up_adapters, down_adapters;
};

struct DecoderLayer {
  at::Tensor input_norm_D, post_attention_norm_D;
  Attention attention;
  FeedForward dense;  ///< of a layer without experts
  // MoE layers: E experts and a router, perhaps a shared expert (with or without its gate) and a DAG.
  bool is_moe = false;
  Experts experts;
  Linear router;             ///< [E, D]
  at::Tensor router_bias_E;  ///< float, never trained by gradient; undefined without MoeConfig::router_bias
  bool has_shared_expert = false;
  FeedForward shared_expert;
  Linear shared_gate;        ///< [1, D]; without weight where the family has none
  std::vector<DagStep> dag;  ///< empty: plain weighted sum
};

/// A Llama-style decoder whose feed-forward layers are dense, mixture-of-experts, or experts combined by a learned DAG
/// (arXiv:2606.01062); ModelConfig says what its family does otherwise. Tensors are plain members; `parameters()` gives
/// their checkpoint names. Weights may be float, bfloat16 or double; compute happens in `compute_dtype`, to which each
/// weight is cast where it differs (a no-op for frozen weights that were converted once).
class Decoder {
 public:
  /// Declares every parameter, without memory: undefined tensors that a loader or an initializer fills.
  explicit Decoder(const ModelConfig& config);

  ModelConfig config;
  at::ScalarType compute_dtype = at::kFloat;
  at::Tensor embed_tokens_VD, norm_D;
  Linear lm_head;  ///< [V, D]; without weight when tied
  std::vector<DecoderLayer> layers;

  /// In the order of parameter_shapes(config), which says what shape each must have.
  std::vector<NamedTensor> parameters();
  /// Every linear layer that can carry adapters, in the order of the forward pass. Routed experts and the DAG are none.
  std::vector<NamedLinear> linears();
  /// The factors and magnitudes of all adapters: "model.layers.3.self_attn.q_proj.lora_A.weight",
  /// "model.layers.3.mlp.experts.gate_up_proj.lora_B.weight".
  std::vector<NamedTensor> adapter_parameters();
  /// What adapters hold besides parameters: PiSSA's start, "model.layers.3.self_attn.q_proj.lora_A.initial", and the
  /// bias of SMoRA, "model.layers.3.self_attn.q_proj.smora_gate.bias".
  std::vector<NamedTensor> adapter_buffers();
  /// parameters() and adapter_parameters().
  std::vector<NamedTensor> all_parameters();

  /// Hidden states of packed sequences. Differentiable with respect to every parameter that requires grad.
  ModelOutput forward(const ModelInput& input, const ForwardOptions& options = {}) const;
  /// Hidden states [rows, D] of the wanted rows alone; what no wanted row needs is not computed in the last layer. What
  /// is kept may overwrite rows of the cache that no segment sees. No gradients.
  at::Tensor forward_in_context(const ContextInput& input, KvCache& cache) const;
  /// Appends `input_ids_T` (one sequence) to the cache and returns the hidden states of the new tokens. No gradients.
  at::Tensor forward_cached(const at::Tensor& input_ids_T, KvCache& cache) const;
  KvCache make_cache(std::int64_t capacity) const;
  /// hidden_XD -> logits_XV in the compute dtype.
  at::Tensor logits(const at::Tensor& hidden_XD) const;
  /// The output matrix in the compute dtype: lm_head, or the embedding when tied.
  at::Tensor output_weight() const;

 private:
  /// What every layer of a forward pass shares. The tables are small: two numbers for each token and pair of a head.
  struct Sequences {
    RopeTables rope;
    Segments segments;
    bool adapter_dropout = false;
    std::uint64_t noise_seed = 0;
    std::int64_t first_sequence = 0;
    double adapter_balance_weight = 0.0;
    AdapterPass adapter_pass(const ForwardOptions& options) const {
      return {adapter_dropout ? &segments.offsets : nullptr, noise_seed, first_sequence, adapter_balance_weight,
              options.adapter_use};
    }
  };

  RopeTables rope_tables_at(const at::Tensor& position_ids_T) const;
  at::Tensor embed(const ModelInput& input, const ForwardOptions& options) const;
  /// `expert_ids_TK` undefined: the router chooses.
  LayerOutput run_layer(std::int64_t layer_index, const at::Tensor& hidden_TD, const Sequences& sequences,
                        const at::Tensor& expert_ids_TK, const ForwardOptions& options) const;
  LayerOutput run_layer_recomputed(std::int64_t layer_index, const at::Tensor& hidden_TD,
                                   const std::shared_ptr<const Sequences>& sequences,
                                   const ForwardOptions& options) const;
  LayerOutput feed_forward(std::int64_t layer_index, const at::Tensor& hidden_TD, const at::Tensor& expert_ids_TK,
                           const AdapterPass& pass, const ForwardOptions& options) const;
};

/// One step of balancing without a loss for every layer that has a router bias (router.h). `counts` are those of the
/// optimizer step. Throws InternalError when they are of another number of layers.
void update_router_bias(Decoder& model, const ExpertCounts& counts, double rate);

/// One step of balancing for every SMoRA adapter that `counts`, those of the optimizer step, has.
void update_adapter_bias(Decoder& model, const RankCounts& counts, double rate);

/// Random weights: N(0, initializer_range^2) for matrices, ones for norms, zero for every DAG up_proj (method.md 1.1).
void initialize_parameters(Decoder& model, std::uint64_t seed);
/// The same for the DAG parameters alone: what adding an aggregator to a checkpoint means.
void initialize_dag(Decoder& model, std::uint64_t seed);

}  // namespace dagmoe
