#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/segments.h"

// The only part of the kernels that sees tensors: checks shapes, picks CPU or CUDA and the kernel table, splits rows
// over threads, wires autograd. Activations are float, bfloat16 or (for gradient checks) double; norm weights and
// cos/sin tables are float, or double with double activations. Nothing is saved for backward that no gradient needs.
// Letters: T tokens, D hidden, F expert width, H heads, d head width, K chosen experts, G DAG node width, V vocabulary,
// R = T K routed rows, I/O inputs and outputs of a linear layer, X any leading dimensions.

namespace dagmoe {

/// kernels/rms_norm.h over the last dimension.
at::Tensor rms_norm(const at::Tensor& x_XD, const at::Tensor& weight_D, double eps);
/// kernels/rope.h on x_THd (each token's heads contiguous).
at::Tensor rope(const at::Tensor& x_THd, const at::Tensor& cos_Td2, const at::Tensor& sin_Td2);
/// kernels/swiglu.h.
at::Tensor swiglu(const at::Tensor& gate_XF, const at::Tensor& up_XF);
/// kernels/dag_pairs.h.
at::Tensor dag_pairs(const at::Tensor& abce_TK4G);

/// Causal attention inside each segment [offsets[s], offsets[s+1]) of the T tokens; k and v have fewer heads in
/// grouped-query attention (heads h*H/Hk.. share one). Scale d^-1/2; products and softmax are float whatever the
/// activations are, and the S x S matrix never exists. `window` above 0: a token sees only the last `window` tokens,
/// itself included. A segment that goes on from another sees its rows, too. On the CPU ops_attention_cpu.h, on a GPU
/// LibTorch's kernels segment by segment.
at::Tensor segment_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                             const Segments& segments, std::int64_t window = 0);
/// The slow twin: a full masked softmax, for tests and for double.
at::Tensor segment_attention_reference(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                       const Segments& segments, std::int64_t window = 0);

/// Keys and values that stand before a segment's own: rows [begin, begin + count) of the cache, or of this pass.
struct ContextSpan {
  bool is_cached = false;
  std::int64_t begin = 0, count = 0;
};
/// Rows [begin, begin + count) of a pass: they see `context`, span after span, and then themselves causally.
struct ContextSegment {
  std::int64_t begin = 0, count = 0;
  std::vector<ContextSpan> context = {};
  std::int64_t context_size() const;
};
/// segment_attention for segments that go on from others: prompts and their continuations, prefixes computed earlier.
/// The cache tensors are [S, kv heads, d]; undefined when no span is cached. Rows in no segment get zeros. No
/// gradients. Products and softmax are float whatever the activations are.
at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                             const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                             const std::vector<ContextSegment>& segments, std::int64_t window = 0);
/// The slow twin, for tests, for double and for other devices: each segment's keys side by side, a masked softmax.
at::Tensor context_attention_reference(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                       const at::Tensor& cached_k_SHkd, const at::Tensor& cached_v_SHkd,
                                       const std::vector<ContextSegment>& segments, std::int64_t window = 0);

/// x W^T in float for activations of any type, in double for double: the logits of routers, of which E is small. No
/// float copy of x is kept or made whole.
at::Tensor router_logits(const at::Tensor& x_TD, const at::Tensor& weight_ED);

/// Where routed rows lie: rows are (token, slot) pairs sorted by expert, ties in token order.
struct RoutedRows {
  at::Tensor token_of_row_R;  ///< int64: which token a row came from
  at::Tensor row_of_slot_TK;  ///< int64: where token t's slot k went
  std::vector<std::int64_t> counts_E;
};
RoutedRows route_rows(const at::Tensor& expert_ids_TK, std::int64_t num_experts);
/// x_TD -> x_RD: each token's row once per chosen expert.
at::Tensor gather_routed(const at::Tensor& x_TD, const RoutedRows& rows);
/// y_RD -> y_TKD: back to token order.
at::Tensor ungather_routed(const at::Tensor& y_RD, const RoutedRows& rows);
/// y = x W_e^T over rows sorted by expert; one weight per expert, so no checkpoint layout forces a copy; an expert
/// without rows costs nothing and gets a zero gradient.
at::Tensor grouped_linear(const at::Tensor& x_RI, const std::vector<at::Tensor>& weights_OI,
                          const std::vector<std::int64_t>& counts_E);

/// scale B_e A_e x over rows sorted by expert: what low-rank changes of the experts' matrices add, for routed rows
/// only; no matrix of an expert's size is formed. `a_ERI` and `b_EOR` hold the factors of rank R of all experts and
/// have the dtype of x; one without rows costs nothing but a gradient of zeros.
at::Tensor grouped_low_rank(const at::Tensor& x_NI, const at::Tensor& a_ERI, const at::Tensor& b_EOR,
                            const std::vector<std::int64_t>& counts_E, double scale);

/// Low-rank changes of one matrix of all experts, W_e + scale B_e A_e, in the dtype of the activations.
struct ExpertFactors {
  at::Tensor a_ERI, b_EOR;
  double scale = 1.0;
};
/// SwiGLU experts, one matrix each. The factors of gate_up are of [gate; up], whose rows lie one after the other.
struct ExpertMatrices {
  std::vector<at::Tensor> gate_FD, up_FD, down_DF;
  std::vector<ExpertFactors> gate_up = {}, down = {};
};
/// Rows of one expert that go through its products together: more share the cost of laying out a matrix, fewer keep all
/// threads busy.
inline constexpr std::int64_t kExpertRowsPerPiece = 512;
/// y_TKD: W2 (SiLU(W1 x) * W3 x) of each token's chosen experts. On the CPU each piece of an expert's rows goes through
/// all its products on one thread, forward and backward; gate and up are kept, and what is formed from them again is
/// not. Independent of the number of threads, bit for bit.
at::Tensor expert_ffn(const at::Tensor& x_TD, const RoutedRows& rows, const ExpertMatrices& experts);
/// The slow twin, product after product over all rows: for tests, for double and for other devices.
at::Tensor expert_ffn_reference(const at::Tensor& x_TD, const RoutedRows& rows, const ExpertMatrices& experts);

/// One DAG iteration's weights (eq. 7-11): the norm's in the accumulate type or wider use, the others of any dtype;
/// edge and node take [target, source], target half first. G: node width.
struct DagIteration {
  at::Tensor norm_D, down_GD, edge_G2G, node_G2G, up_DG;
};
struct DagInput {
  at::Tensor hidden_TD;          ///< h
  at::Tensor extra_residual_TD;  ///< undefined, or what the nodes share instead of h; added to the result, too
  at::Tensor expert_out_TKD;     ///< E_i
  at::Tensor weights_TK;         ///< g_i
};
struct DagOptions {
  double norm_eps = 1e-5;
  bool subtract_mean = true;        ///< LayerNorm; false: RMSNorm
  bool hidden_is_residual = false;  ///< the nodes share h
};
/// Rows, nodes of tokens, that go through the iterations together: more share the cost of calling a product, fewer keep
/// all threads busy.
inline constexpr std::int64_t kDagRowsPerBlock = 1024;
/// h + extra + sum_i g_i E_i + sum_l W_up^l sum_i S_i^l on the CPU, in the dtype of h; without iterations the plain
/// mixture. The backward pass keeps E and the narrow tensors and forms the nodes again. Independent of the number of
/// threads, bit for bit. Source: arXiv:2606.01062 eq. 6-12.
at::Tensor dag_combine(const DagInput& input, const std::vector<DagIteration>& iterations, const DagOptions& options);

/// For each row of logits: log sum exp, in double, and the first argmax. No gradients.
struct RowSummary {
  std::vector<double> log_sum_exp;
  std::vector<std::int64_t> argmax;
};
RowSummary summarize_logits(const at::Tensor& logits_NV);

/// Tokens whose logits exist at a time: enough for an efficient product, 50 MB of bfloat16 at V = 49152.
inline constexpr std::int64_t kCrossEntropyRows = 512;

/// scale * sum over tokens with label != -100 of cross entropy(hidden W^T, label), in nats; double scalar on CPU
/// wrapped as a float tensor. The logits exist for one chunk of tokens at a time. The gradient is formed in the forward
/// pass when it will be needed, so that no chunk is multiplied twice. `weight_VD` has the dtype of hidden (bf16 copy of
/// an fp32 master is the caller's).
at::Tensor masked_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& weight_VD, const at::Tensor& labels_T,
                                double scale);

/// The same with label smoothing, whose terms are logged apart.
struct SmoothedCrossEntropy {
  at::Tensor objective;  ///< (1 - eps) nll + eps uniform: what is minimized
  double nll = 0.0;      ///< scale * sum of -log p[label]: masked_cross_entropy
  double uniform = 0.0;  ///< scale * sum of -(1/V) sum_v log p[v]; 0 without smoothing, as it is not computed then
};
/// `label_smoothing` is eps in [0, 1], as torch.nn.CrossEntropyLoss defines it. 0 costs nothing more than
/// masked_cross_entropy.
SmoothedCrossEntropy smoothed_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& weight_VD,
                                            const at::Tensor& labels_T, double scale, double label_smoothing);

}  // namespace dagmoe
