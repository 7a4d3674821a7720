#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "finetune/optimizer.h"

// The update rules behind Optimizer; a file each.

namespace dagmoe {

/// The parameters of one rule with their state.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  /// `num_steps` counts this update too: 1 at the first.
  virtual void step(double lr, double gradient_scale, std::int64_t num_steps) = 0;
  virtual std::vector<StateTensor> state() const = 0;
};

std::unique_ptr<UpdateRule> adamw_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config);
std::unique_ptr<UpdateRule> adamw_8bit_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config);
std::unique_ptr<UpdateRule> muon_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config);
std::unique_ptr<UpdateRule> sgd_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config);

/// Parameters that share a learning rate and a weight decay, so that one fused call serves them all.
struct ParameterGroup {
  double lr_scale = 1.0, weight_decay = 0.0;
  std::vector<std::size_t> indices;
};
std::vector<ParameterGroup> parameter_groups_of(const std::vector<TrainedParameter>& parameters);

/// Gradients of parameters, with zeros where there is none. All missing gradients share one piece of memory, which an
/// update may only multiply.
class Gradients {
 public:
  explicit Gradients(const std::vector<TrainedParameter>& parameters);
  at::Tensor of(const at::Tensor& parameter) const;

 private:
  at::Tensor zeros_;
};

/// What LibTorch's fused updates divide gradients by; nothing for a scale of one.
std::optional<at::Tensor> fused_divisor(double gradient_scale, const at::Tensor& like);

/// "prefix.NAME" for each parameter.
void append_state(std::vector<StateTensor>& state, const char* prefix, const std::vector<TrainedParameter>& parameters,
                  const std::vector<at::Tensor>& tensors);

}  // namespace dagmoe
