#include "finetune/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

namespace dagmoe {

AdamW::AdamW(std::vector<at::Tensor> parameters, const AdamWConfig& config)
    : config_(config), parameters_(std::move(parameters)) {
  for (const at::Tensor& parameter : parameters_) {
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
    step_counts_.push_back(at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false)));
  }
}

void AdamW::step(double lr, double gradient_scale) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> with_gradient, gradients, exp_avg, exp_avg_sq, step_counts;
  ++num_steps_;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    step_counts_[i].fill_(static_cast<double>(num_steps_));
    // A parameter that no token reached this step (an expert without rows) has no gradient: it counts as zero.
    at::Tensor gradient = parameters_[i].grad();
    if (!gradient.defined()) gradient = at::zeros_like(parameters_[i]);
    if (gradient_scale != 1.0) gradient.mul_(gradient_scale);
    with_gradient.push_back(parameters_[i]);
    gradients.push_back(gradient);
    exp_avg.push_back(exp_avg_[i]);
    exp_avg_sq.push_back(exp_avg_sq_[i]);
    step_counts.push_back(step_counts_[i]);
  }
  at::_fused_adamw_(with_gradient, gradients, exp_avg, exp_avg_sq, /*max_exp_avg_sqs=*/{}, step_counts, lr,
                    config_.beta1, config_.beta2, config_.weight_decay, config_.eps, /*amsgrad=*/false,
                    /*maximize=*/false);
}

void AdamW::set_num_steps(std::int64_t num_steps) { num_steps_ = num_steps; }

double global_grad_norm(const std::vector<at::Tensor>& parameters) {
  double sum = 0.0;
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.grad().defined()) continue;
    const double norm = at::linalg_vector_norm(parameter.grad()).item<double>();
    sum += norm * norm;
  }
  return std::sqrt(sum);
}

}  // namespace dagmoe
