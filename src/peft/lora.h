#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dagmoe {

struct AdapterUse;  // mixture.h

/// What an adapter needs to know of the pass it runs in. `segment_offsets` as in ModelInput; null: no dropout.
struct AdapterPass {
  const std::vector<std::int64_t>* segment_offsets = nullptr;
  std::uint64_t seed = 0;           ///< of the optimizer step
  std::int64_t first_sequence = 0;  ///< the number, in the step, of the batch's first sequence
  double balance_weight = 0.0;      ///< what the balance loss of each S'MoRE weighs in the gradient
  AdapterUse* use = nullptr;        ///< gets what mixtures choose; null: nobody asks
};

/// A low-rank change of one linear layer W [O, I] (LoRA, arXiv:2106.09685): W + scale B A. Letters: R rank, I inputs,
/// O outputs, X any leading dimensions. Factors are float (double in gradient checks) and are cast to the dtype of x.
struct LoraAdapter {
  at::Tensor a_RI, b_OR;
  double scale = 1.0;    ///< alpha / R, or alpha / sqrt(R) (rsLoRA, arXiv:2312.03732)
  double dropout = 0.0;  ///< share of x's elements that A does not see in training
  /// DoRA (arXiv:2402.09353): row o of the changed matrix has this length; undefined: LoRA.
  at::Tensor magnitude_O;
  /// PiSSA (arXiv:2404.02948): where A and B started. W + scale (B A - B0 A0) is what peft writes as a residual base
  /// matrix and factors; the base stays as it is. Undefined: none.
  at::Tensor initial_a_RI, initial_b_OR;
  std::uint64_t id = 0;  ///< tells the dropout of one layer from that of another
};

/// y_XO + what the adapters add to x W^T + b. `y_XO` is that product, bias included, and may be
/// overwritten: a sum beside it would cost as much memory again. `bias_O` may be undefined.
///   LoRA:  y + scale B (A dropout(x))
///   DoRA:  y + (m/n - 1) W x + (m/n) scale B A x, n the row lengths of W + scale B A, taken as constants
/// With several adapters each changes the base on its own and the changes add up, as peft's active adapters do, but for
/// a DoRA behind another adapter: peft's scales the rows that the one before has changed, so order counts there.
at::Tensor add_adapters(at::Tensor y_XO, const at::Tensor& x_XI, const at::Tensor& weight_OI, const at::Tensor& bias_O,
                        const std::vector<LoraAdapter>& adapters, const AdapterPass& pass);

/// The matrix that the adapters make of W, in W's dtype, differentiable with respect to the factors: for merging, and
/// for matrices that are small or needed as a whole (a router, lm_head). No dropout. W itself without adapters.
at::Tensor adapted_weight(const at::Tensor& weight_OI, const std::vector<LoraAdapter>& adapters);

/// Factors of one tensor that holds all routed experts of a layer, W_e + scale B_e A_e. E experts.
struct ExpertLora {
  at::Tensor a_ERI, b_EOR;
  double scale = 1.0;
};
/// W_e with the adapters' changes, in W's dtype; rows [first_row, first_row + O') of B_e when W_e is a part of the
/// tensor that the factors are of (gate or up of gate_up).
at::Tensor adapted_expert_weight(const at::Tensor& weight_OI, const std::vector<ExpertLora>& adapters,
                                 std::int64_t expert, std::int64_t first_row);

enum class LoraInit {
  kDefault,  ///< A Kaiming-uniform with a = sqrt(5), so within 1 / sqrt(I); B zero
  kPissa,    ///< of the R largest singular values of W, divided by the scale: A = sqrt(S) V^T, B = U sqrt(S)
};
/// Random or principal factors of float, nothing changed yet: scale B A (minus its start) is zero.
struct LoraFactors {
  at::Tensor a_RI, b_OR;
};
LoraFactors initial_factors(LoraInit init, const at::Tensor& weight_OI, std::int64_t rank, double scale,
                            std::uint64_t seed);
/// A [E, R, I] for all experts and B [E, O, R]; Kaiming over I, as for a linear layer.
LoraFactors initial_expert_factors(std::int64_t num_experts, std::int64_t rank, std::int64_t I, std::int64_t O,
                                   std::uint64_t seed);
/// The row lengths of W + scale B A that DoRA starts with.
at::Tensor initial_magnitude(const at::Tensor& weight_OI, const LoraFactors& factors, double scale);

}  // namespace dagmoe
