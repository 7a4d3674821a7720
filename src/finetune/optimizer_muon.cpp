#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "finetune/optimizer_rules.h"

namespace dagmoe {
namespace {

/// Brings the singular values of g near 1 (to about 0.7 ... 1.2) and keeps its singular vectors: Newton-Schulz
/// iterations of the quintic whose coefficients give the steepest slope at 0. A matrix of zeros stays one.
at::Tensor orthogonalized(const at::Tensor& g, std::int64_t num_iterations) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kLeastNorm = 1e-7;
  const bool is_tall = g.size(0) > g.size(1);  // the product x x^T should be the small one
  at::Tensor x = is_tall ? g.t() : g;
  x = x / at::linalg_vector_norm(x).clamp_min(kLeastNorm);
  for (std::int64_t i = 0; i < num_iterations; ++i) {
    const at::Tensor gram = at::mm(x, x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, kB, kC), x, kA);
  }
  return is_tall ? x.t() : x;
}

class MuonRule : public UpdateRule {
 public:
  MuonRule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config)
      : config_(config), parameters_(std::move(parameters)) {
    for (const TrainedParameter& parameter : parameters_)
      momentum_buffers_.push_back(at::zeros_like(parameter.tensor).set_requires_grad(false));
  }

  void step(double lr, double gradient_scale, std::int64_t) override {
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      update(parameters_[i], momentum_buffers_[i], lr * parameters_[i].lr_scale, gradient_scale);
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    append_state(all, "momentum_buffer", parameters_, momentum_buffers_);
    return all;
  }

 private:
  void update(const TrainedParameter& parameter, const at::Tensor& buffer, double lr, double gradient_scale) const {
    const at::Tensor& tensor = parameter.tensor;
    at::Tensor gradient = tensor.grad();
    buffer.mul_(config_.momentum);
    if (gradient.defined()) buffer.add_(gradient, (1.0 - config_.momentum) * gradient_scale);
    at::Tensor direction = buffer;
    if (config_.nesterov) {
      direction = buffer * config_.momentum;
      if (gradient.defined()) direction.add_(gradient, (1.0 - config_.momentum) * gradient_scale);
    }
    const double longest = static_cast<double>(std::max(tensor.size(0), tensor.size(1)));
    tensor.mul_(1.0 - lr * parameter.weight_decay);
    tensor.add_(orthogonalized(direction, config_.newton_schulz_steps), -lr * 0.2 * std::sqrt(longest));
  }

  OptimizerConfig config_;
  std::vector<TrainedParameter> parameters_;
  std::vector<at::Tensor> momentum_buffers_;
};

}  // namespace

std::unique_ptr<UpdateRule> muon_rule(std::vector<TrainedParameter> parameters, const OptimizerConfig& config) {
  return std::make_unique<MuonRule>(std::move(parameters), config);
}

}  // namespace dagmoe
