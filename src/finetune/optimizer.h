#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace dagmoe {

struct AdamWConfig {
  double lr = 2e-5, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
};

/// AdamW with decoupled weight decay over fp32 tensors, one fused pass over all of them (at::_fused_adamw_, the update
/// of torch.optim.AdamW). Holds nothing for parameters that do not train.
class AdamW {
 public:
  AdamW(std::vector<at::Tensor> parameters, const AdamWConfig& config);
  /// One update with the parameters' gradients, each multiplied by `gradient_scale` (clipping) on the way.
  void step(double lr, double gradient_scale);
  const std::vector<at::Tensor>& parameters() const noexcept { return parameters_; }
  const std::vector<at::Tensor>& first_moments() const noexcept { return exp_avg_; }
  const std::vector<at::Tensor>& second_moments() const noexcept { return exp_avg_sq_; }
  std::int64_t num_steps() const noexcept { return num_steps_; }
  void set_num_steps(std::int64_t num_steps);

 private:
  AdamWConfig config_;
  std::vector<at::Tensor> parameters_, exp_avg_, exp_avg_sq_, step_counts_;
  std::int64_t num_steps_ = 0;
};

/// Square root of the sum of squares of every gradient, in double over float partial norms; 0 without gradients.
double global_grad_norm(const std::vector<at::Tensor>& parameters);

}  // namespace dagmoe
