#pragma once

#include <string_view>

#include "peft/mixture_support.h"

// SMoRA (arXiv:2501.15103): one LoRA in which every rank is an expert.
//
//   y += alpha B diag(g) A x
//   score_r = sigmoid(W_g x)_r + b_r;  the k largest are chosen;  g_r = score_r / (sum of the chosen scores), else 0
//
// alpha multiplies as it is, not alpha / rank as in LoRA: the gates sum to 1, so that the update's size does not grow
// with the rank. The gates are the biased scores, as in the authors' program; unbiased ones, as balancing by bias
// (arXiv:2408.15664) has them elsewhere, are not offered. With k = 1 the one gate is 1 and the router learns nothing.
// The sum of the chosen scores is near 0 only when every sigmoid is; it is not guarded against.
// Letters: T tokens, I inputs and O outputs of the linear, R rank, K chosen ranks.

namespace dagmoe {

/// The paper's: rank 64, 8 active, alpha 16.
struct SmoraConfig {
  std::int64_t rank = 64, num_active = 8;
  double alpha = 16.0;
};

/// What is wrong with it, "KEY: found X, expected Y" each.
std::vector<std::string> problems_of(const SmoraConfig& config);
/// Throws ConfigError with every problem; `where` is the place in the recipe or file.
void check(const SmoraConfig& config, std::string_view where);

/// Handles of the tensors of one adapted linear.
struct Smora {
  SmoraConfig config;
  at::Tensor A_RI, B_OR, gate_RI;
  at::Tensor bias_R;  ///< float, no gradient: updated_smora_bias
};

/// "smora_A.weight", "smora_B.weight", "smora_gate.weight" and last the buffer "smora_gate.bias", which is saved with
/// them but no optimizer may touch.
std::vector<NamedShape> smora_shapes(const SmoraConfig& config, std::int64_t out, std::int64_t in);
/// The adapter's tensors in that order.
std::vector<at::Tensor*> smora_tensors(Smora& adapter);
/// From tensors in that order.
Smora make_smora(const SmoraConfig& config, const std::vector<at::Tensor>& tensors);
/// In place: A and W_g Kaiming uniform (a = sqrt(5)), B and b zero. The update is exactly zero, the gradient of B is
/// not; A and W_g get theirs from the second step on, as A does in LoRA.
void initialize_smora(const Smora& adapter, at::Generator& generator);

/// What was chosen for T tokens.
struct SmoraRouting {
  at::Tensor gates_TK;     ///< float (double with double x), sum to 1
  at::Tensor rank_ids_TK;  ///< int64, largest biased score first
};

/// The update delta_TO in x's dtype, differentiable by x, A, B and W_g. Router and gates are float (double with double
/// x). `routing`, unless null, is set.
at::Tensor smora_delta(const at::Tensor& x_TI, const Smora& adapter, SmoraRouting* routing = nullptr);

/// How often each rank was chosen; to be summed over the micro batches of a step.
std::vector<std::int64_t> smora_counts(const SmoraRouting& routing, const SmoraConfig& config);

/// What one optimizer step changes b by, in the authors' program.
inline constexpr double kSmoraBiasRate = 1e-5;
/// b_r + rate * sign(mean count - count_r); `counts_R` of the whole step.
at::Tensor updated_smora_bias(const at::Tensor& bias_R, const std::vector<std::int64_t>& counts_R,
                              double rate = kSmoraBiasRate);

}  // namespace dagmoe
