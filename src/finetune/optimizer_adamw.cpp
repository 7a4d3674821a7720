#include <ATen/ATen.h>

#include <utility>

#include "finetune/optimizer_rules.h"

namespace dagmoe {
namespace {

class AdamWRule : public UpdateRule {
 public:
  AdamWRule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config)
      : config_(config), parameters_(std::move(parameters)), groups_(parameter_groups_of(parameters_)) {
    for (const TrainedParameter& parameter : parameters_) {
      exp_avg_.push_back(at::zeros_like(parameter.tensor).set_requires_grad(false));
      exp_avg_sq_.push_back(at::zeros_like(parameter.tensor).set_requires_grad(false));
    }
  }

  void step(double lr, double gradient_scale, std::int64_t num_steps) override {
    const Gradients all_gradients(parameters_);
    const at::Tensor& any = parameters_.front().tensor;
    const at::Tensor step_count = at::full({}, static_cast<double>(num_steps), any.options().requires_grad(false));
    const auto divisor = fused_divisor(gradient_scale, any);
    for (const ParameterGroup& group : groups_) {
      std::vector<at::Tensor> tensors, gradients, exp_avg, exp_avg_sq;
      for (const std::size_t i : group.indices) {
        tensors.push_back(parameters_[i].tensor);
        gradients.push_back(all_gradients.of(parameters_[i].tensor));
        exp_avg.push_back(exp_avg_[i]);
        exp_avg_sq.push_back(exp_avg_sq_[i]);
      }
      const std::vector<at::Tensor> step_counts(tensors.size(), step_count);
      at::_fused_adamw_(tensors, gradients, exp_avg, exp_avg_sq, /*max_exp_avg_sqs=*/{}, step_counts,
                        lr * group.lr_scale, config_.beta1, config_.beta2, group.weight_decay, config_.eps,
                        /*amsgrad=*/false, /*maximize=*/false, divisor);
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    append_state(all, "exp_avg", parameters_, exp_avg_);
    append_state(all, "exp_avg_sq", parameters_, exp_avg_sq_);
    return all;
  }

 private:
  OptimizerConfig config_;
  std::vector<TrainedParameter> parameters_;
  std::vector<ParameterGroup> groups_;
  std::vector<at::Tensor> exp_avg_, exp_avg_sq_;
};

}  // namespace

std::unique_ptr<UpdateRule> adamw_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config) {
  return std::make_unique<AdamWRule>(std::move(parameters), config);
}

}  // namespace dagmoe
