#include <ATen/ATen.h>

#include <utility>

#include "finetune/optimizer_rules.h"

namespace dagmoe {
namespace {

class SgdRule : public UpdateRule {
 public:
  SgdRule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config)
      : config_(config), parameters_(std::move(parameters)), groups_(parameter_groups_of(parameters_)) {
    if (config_.momentum == 0.0) return;
    for (const TrainedParameter& parameter : parameters_)
      momentum_buffers_.push_back(at::zeros_like(parameter.tensor).set_requires_grad(false));
  }

  void step(double lr, double gradient_scale, std::int64_t) override {
    const Gradients all_gradients(parameters_);
    const auto divisor = fused_divisor(gradient_scale, parameters_.front().tensor);
    const bool has_momentum = config_.momentum != 0.0;
    for (const ParameterGroup& group : groups_) {
      std::vector<at::Tensor> tensors, gradients, buffers;
      for (const std::size_t i : group.indices) {
        tensors.push_back(parameters_[i].tensor);
        gradients.push_back(all_gradients.of(parameters_[i].tensor));
        if (has_momentum) buffers.push_back(momentum_buffers_[i]);
      }
      // A buffer of zeros makes torch's first step, which copies the gradient, the same as every other.
      at::_fused_sgd_(tensors, gradients, buffers, group.weight_decay, config_.momentum, lr * group.lr_scale,
                      /*dampening=*/0.0, config_.nesterov && has_momentum, /*maximize=*/false,
                      /*is_first_step=*/false, divisor);
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    if (!momentum_buffers_.empty()) append_state(all, "momentum_buffer", parameters_, momentum_buffers_);
    return all;
  }

 private:
  OptimizerConfig config_;
  std::vector<TrainedParameter> parameters_;
  std::vector<ParameterGroup> groups_;
  std::vector<at::Tensor> momentum_buffers_;
};

}  // namespace

std::unique_ptr<UpdateRule> sgd_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config) {
  return std::make_unique<SgdRule>(std::move(parameters), config);
}

}  // namespace dagmoe
