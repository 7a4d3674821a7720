#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "finetune/optimizer_rules.h"
#include "kernels/dispatch.h"

namespace dagmoe {
namespace {

struct State8bit {
  at::Tensor m_N, v_N, m_scale_B, v_scale_B;
};

State8bit empty_state(const TrainedParameter& parameter) {
  if (!parameter.tensor.is_cpu()) {
    throw ConfigError(str("optimizer: adamw_8bit runs on cpu only; parameter '", parameter.name, "' is on ",
                          parameter.tensor.device().str(), "; use adamw"));
  }
  const std::int64_t size = parameter.tensor.numel(), blocks = num_blocks_8bit(size);
  return {at::zeros({size}, at::kByte), at::zeros({size}, at::kByte), at::zeros({blocks}), at::zeros({blocks})};
}

class AdamW8bitRule : public UpdateRule {
 public:
  AdamW8bitRule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config)
      : config_(config), parameters_(std::move(parameters)) {
    for (const TrainedParameter& parameter : parameters_) state_.push_back(empty_state(parameter));
  }

  void step(double lr, double gradient_scale, std::int64_t num_steps) override {
    const Gradients gradients(parameters_);
    const double t = static_cast<double>(num_steps);
    AdamW8bit args{};
    args.grad_scale = static_cast<float>(gradient_scale);
    args.beta1 = static_cast<float>(config_.beta1);
    args.one_minus_beta1 = static_cast<float>(1.0 - config_.beta1);
    args.beta2 = static_cast<float>(config_.beta2);
    args.one_minus_beta2 = static_cast<float>(1.0 - config_.beta2);
    args.eps = static_cast<float>(config_.eps);
    args.correction = static_cast<float>(std::sqrt(1.0 - std::pow(config_.beta2, t)));
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const double own_lr = lr * parameters_[i].lr_scale;
      args.param_factor = static_cast<float>(1.0 - own_lr * parameters_[i].weight_decay);
      args.step_size = static_cast<float>(own_lr / (1.0 - std::pow(config_.beta1, t)));
      update(args, parameters_[i].tensor, gradients.of(parameters_[i].tensor), state_[i]);
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const std::string& name = parameters_[i].name;
      all.push_back({"exp_avg_8bit." + name, state_[i].m_N});
      all.push_back({"exp_avg_scale." + name, state_[i].m_scale_B});
      all.push_back({"exp_avg_sq_8bit." + name, state_[i].v_N});
      all.push_back({"exp_avg_sq_scale." + name, state_[i].v_scale_B});
    }
    return all;
  }

 private:
  static void update(const AdamW8bit& scalars, const at::Tensor& parameter, const at::Tensor& gradient,
                     const State8bit& state) {
    // A thread's least work: about as long as it takes to wake one.
    constexpr std::int64_t kLeastBlocks = 128;
    at::parallel_for(0, state.m_scale_B.numel(), kLeastBlocks, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t first = begin * kBlockSize8bit;
      AdamW8bit args = scalars;
      args.N = std::min(end * kBlockSize8bit, parameter.numel()) - first;
      args.grad_N = gradient.const_data_ptr<float>() + first;
      args.param_N = parameter.data_ptr<float>() + first;
      args.m_N = state.m_N.data_ptr<std::uint8_t>() + first;
      args.v_N = state.v_N.data_ptr<std::uint8_t>() + first;
      args.m_scale_B = state.m_scale_B.data_ptr<float>() + begin;
      args.v_scale_B = state.v_scale_B.data_ptr<float>() + begin;
      kernels<float>().adamw_8bit(args);
    });
  }

  OptimizerConfig config_;
  std::vector<TrainedParameter> parameters_;
  std::vector<State8bit> state_;
};

}  // namespace

std::unique_ptr<UpdateRule> adamw_8bit_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config) {
  return std::make_unique<AdamW8bitRule>(std::move(parameters), config);
}

}  // namespace dagmoe
