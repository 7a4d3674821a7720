#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

enum class OptimizerKind { kAdamW, kAdamW8bit, kMuon, kSgd };

/// `lr` and `weight_decay` are for the caller to make step()'s lr and each parameter's weight decay of.
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double lr = 2e-5;                               ///< peak of the schedule
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;  ///< AdamW, and what Muon leaves to AdamW
  double weight_decay = 0.0;
  double momentum = 0.95;                ///< Muon and SGD; at least 0, below 1
  bool nesterov = true;                  ///< Muon and SGD; without effect when momentum is 0
  std::int64_t newton_schulz_steps = 5;  ///< Muon
};

/// One tensor that trains: contiguous floats that require grad.
struct TrainedParameter {
  std::string name;
  at::Tensor tensor;
  double lr_scale = 1.0;  ///< its learning rate is lr(step) * lr_scale: one schedule for all groups
  double weight_decay = 0.0;
};

/// A part of the optimizer's memory, such as "exp_avg.model.norm.weight". The tensor shares the optimizer's memory.
struct StateTensor {
  std::string name;
  at::Tensor tensor;
};

/// How one parameter's numbers change at a step. Which rule takes which parameter is decided by rule_of.
enum class UpdateRuleKind { kAdamW, kAdamW8bit, kMuon, kSgd };

/// The rule for a parameter under an optimizer.
/// AdamW 8-bit leaves tensors under 4096 elements and the input embeddings, whose gradients are sparse, to AdamW, as
/// bitsandbytes and transformers do (Dettmers et al., arXiv 2110.02861). Muon is for matrices of the hidden layers,
/// those of the DAG among them; embeddings, lm_head, the router and whatever has one row or one column take AdamW
/// (Jordan et al. 2024; Moonlight, arXiv 2502.16982).
UpdateRuleKind rule_of(OptimizerKind kind, std::string_view name, at::IntArrayRef shape);

/// Bytes of the state of one parameter, without creating it.
std::int64_t optimizer_state_bytes(const OptimizerConfig& config, std::string_view name, at::IntArrayRef shape);

class UpdateRule;

/// Updates parameters from their gradients. Holds nothing for parameters that do not train.
///   AdamW: torch.optim.AdamW, one fused pass over all tensors.
///   AdamW 8-bit: the same equations with both moments stored in blocks of 256 codes of one byte.
///   Muon: torch.optim.Muon with the step of Moonlight, 0.2 sqrt(max(rows, columns)), whose size is AdamW's, so that
///   one learning rate serves both kinds of parameters. Newton-Schulz runs in float.
///   SGD: torch.optim.SGD; weight decay is added to the gradient; without momentum it has no state.
/// A parameter without gradient (an expert that no token reached) counts as one of gradient zero.
class Optimizer {
 public:
  /// Throws InternalError unless every tensor is float and contiguous; ConfigError for 8-bit state off the processor.
  static std::unique_ptr<Optimizer> create(std::vector<TrainedParameter> parameters, const OptimizerConfig& config);
  ~Optimizer();

  /// One update with every gradient multiplied by `gradient_scale` (clipping). Gradients may change on the way.
  void step(double lr, double gradient_scale);
  const std::vector<TrainedParameter>& parameters() const noexcept { return parameters_; }
  /// Updates done; set on resume, since AdamW corrects for it.
  std::int64_t num_steps() const noexcept { return num_steps_; }
  void set_num_steps(std::int64_t num_steps) { num_steps_ = num_steps; }
  /// All that a bit-for-bit resume needs besides the parameters and num_steps, always in the same order. Writing into
  /// these tensors restores the state.
  std::vector<StateTensor> state() const;

 private:
  Optimizer() = default;

  std::vector<TrainedParameter> parameters_;
  std::vector<std::unique_ptr<UpdateRule>> rules_;
  std::int64_t num_steps_ = 0;
};

/// The 2-norm of each parameter's gradient, summed in double and the same on any number of threads; 0 for a parameter
/// without one.
std::vector<double> grad_norms(const std::vector<TrainedParameter>& parameters);
/// Square root of the sum of squares: the norm of tensors from the norms of each.
double combined_norm(std::span<const double> norms);
/// combined_norm of grad_norms.
double global_grad_norm(const std::vector<TrainedParameter>& parameters);

}  // namespace dagmoe
