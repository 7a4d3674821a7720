#include "finetune/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "finetune/optimizer_rules.h"
#include "kernels/adamw_8bit.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

// bitsandbytes' min_8bit_size.
constexpr std::int64_t kLeastElements8bit = 4096;

std::int64_t num_elements(at::IntArrayRef shape) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

bool is_hidden_matrix(std::string_view name, at::IntArrayRef shape) {
  if (shape.size() != 2 || shape[0] == 1 || shape[1] == 1) return false;
  const std::string group = parameter_group(name);
  return group != "embeddings" && group != "lm_head" && group != "router";
}

std::unique_ptr<UpdateRule> make_rule(UpdateRuleKind kind, std::vector<TrainedParameter> parameters,
                                      const OptimizerConfig& config) {
  switch (kind) {
    case UpdateRuleKind::kAdamW:
      return adamw_rule(std::move(parameters), config);
    case UpdateRuleKind::kAdamW8bit:
      return adamw_8bit_rule(std::move(parameters), config);
    case UpdateRuleKind::kMuon:
      return muon_rule(std::move(parameters), config);
    case UpdateRuleKind::kSgd:
      return sgd_rule(std::move(parameters), config);
  }
  throw InternalError("optimizer: unknown update rule");
}

/// A piece of a gradient for one thread. Pieces are cut by size alone, and their sums are added in order, so the norm
/// is the same on any number of threads.
struct GradientPart {
  std::size_t parameter;
  const float* values;
  std::int64_t size;
  double sum = 0.0;
};

void append_parts(std::vector<GradientPart>& parts, const at::Tensor& gradient, std::size_t parameter) {
  constexpr std::int64_t kPartSize = 1 << 16;
  const float* values = gradient.const_data_ptr<float>();
  for (std::int64_t begin = 0; begin < gradient.numel(); begin += kPartSize)
    parts.push_back({parameter, values + begin, std::min(kPartSize, gradient.numel() - begin)});
}

double sum_of_squares(const float* values, std::int64_t size) {
  constexpr std::int64_t kSums = 8;  // that do not wait for each other
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (std::int64_t j = 0; j < kSums; ++j) {
      const double value = static_cast<double>(values[i + j]);
      sums[j] += value * value;
    }
  }
  double total = 0.0;
  for (; i < size; ++i) total += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  for (const double sum : sums) total += sum;
  return total;
}

void check(const TrainedParameter& parameter) {
  if (parameter.tensor.scalar_type() == at::kFloat && parameter.tensor.is_contiguous()) return;
  throw InternalError(str("optimizer: parameter '", parameter.name, "' is not contiguous or not float; found ",
                          at::toString(parameter.tensor.scalar_type())));
}

}  // namespace

UpdateRuleKind rule_of(OptimizerKind kind, std::string_view name, at::IntArrayRef shape) {
  switch (kind) {
    case OptimizerKind::kAdamW:
      return UpdateRuleKind::kAdamW;
    case OptimizerKind::kAdamW8bit: {
      const bool is_large = num_elements(shape) >= kLeastElements8bit;
      return is_large && parameter_group(name) != "embeddings" ? UpdateRuleKind::kAdamW8bit : UpdateRuleKind::kAdamW;
    }
    case OptimizerKind::kMuon:
      return is_hidden_matrix(name, shape) ? UpdateRuleKind::kMuon : UpdateRuleKind::kAdamW;
    case OptimizerKind::kSgd:
      return UpdateRuleKind::kSgd;
  }
  throw InternalError("optimizer: unknown kind");
}

std::int64_t optimizer_state_bytes(const OptimizerConfig& config, std::string_view name, at::IntArrayRef shape) {
  constexpr std::int64_t kFloatBytes = sizeof(float);
  const std::int64_t size = num_elements(shape);
  switch (rule_of(config.kind, name, shape)) {
    case UpdateRuleKind::kAdamW:
      return 2 * kFloatBytes * size;
    case UpdateRuleKind::kAdamW8bit:
      return 2 * (size + kFloatBytes * num_blocks_8bit(size));
    case UpdateRuleKind::kMuon:
      return kFloatBytes * size;
    case UpdateRuleKind::kSgd:
      return config.momentum == 0.0 ? 0 : kFloatBytes * size;
  }
  throw InternalError("optimizer: unknown update rule");
}

std::unique_ptr<Optimizer> Optimizer::create(std::vector<TrainedParameter> parameters, const OptimizerConfig& config) {
  std::unique_ptr<Optimizer> optimizer(new Optimizer);
  for (const auto kind :
       {UpdateRuleKind::kAdamW, UpdateRuleKind::kAdamW8bit, UpdateRuleKind::kMuon, UpdateRuleKind::kSgd}) {
    std::vector<TrainedParameter> taken;
    for (const TrainedParameter& parameter : parameters) {
      check(parameter);
      if (rule_of(config.kind, parameter.name, parameter.tensor.sizes()) == kind) taken.push_back(parameter);
    }
    if (!taken.empty()) optimizer->rules_.push_back(make_rule(kind, std::move(taken), config));
  }
  optimizer->parameters_ = std::move(parameters);
  return optimizer;
}

Optimizer::~Optimizer() = default;

void Optimizer::step(double lr, double gradient_scale) {
  const at::NoGradGuard no_grad;
  ++num_steps_;
  for (const auto& rule : rules_) rule->step(lr, gradient_scale, num_steps_);
}

std::vector<StateTensor> Optimizer::state() const {
  std::vector<StateTensor> all;
  for (const auto& rule : rules_) {
    for (StateTensor& tensor : rule->state()) all.push_back(std::move(tensor));
  }
  return all;
}

std::vector<ParameterGroup> parameter_groups_of(const std::vector<TrainedParameter>& parameters) {
  std::vector<ParameterGroup> groups;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const double lr_scale = parameters[i].lr_scale, weight_decay = parameters[i].weight_decay;
    const auto same = [&](const ParameterGroup& group) {
      return group.lr_scale == lr_scale && group.weight_decay == weight_decay;
    };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {lr_scale, weight_decay, {}});
    group->indices.push_back(i);
  }
  return groups;
}

Gradients::Gradients(const std::vector<TrainedParameter>& parameters) {
  std::int64_t most_elements = 0;
  at::TensorOptions options;
  for (const TrainedParameter& parameter : parameters) {
    if (parameter.tensor.grad().defined() || parameter.tensor.numel() <= most_elements) continue;
    most_elements = parameter.tensor.numel();
    options = parameter.tensor.options().requires_grad(false);
  }
  if (most_elements > 0) zeros_ = at::zeros({most_elements}, options);
}

at::Tensor Gradients::of(const at::Tensor& parameter) const {
  const at::Tensor& gradient = parameter.grad();
  if (gradient.defined()) return gradient.contiguous();
  return zeros_.narrow(0, 0, parameter.numel()).view(parameter.sizes());
}

std::optional<at::Tensor> fused_divisor(double gradient_scale, const at::Tensor& like) {
  if (gradient_scale == 1.0) return std::nullopt;
  return at::full({}, 1.0 / gradient_scale, like.options().requires_grad(false));
}

void append_state(std::vector<StateTensor>& state, const char* prefix, const std::vector<TrainedParameter>& parameters,
                  const std::vector<at::Tensor>& tensors) {
  for (std::size_t i = 0; i < parameters.size(); ++i)
    state.push_back({str(prefix, ".", parameters[i].name), tensors[i]});
}

std::vector<double> grad_norms(const std::vector<TrainedParameter>& parameters) {
  std::vector<double> norms(parameters.size(), 0.0);
  std::vector<GradientPart> parts;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& gradient = parameters[i].tensor.grad();
    if (!gradient.defined()) continue;
    if (gradient.is_cpu() && gradient.is_contiguous()) {
      append_parts(parts, gradient, i);
    } else {
      norms[i] = at::linalg_vector_norm(gradient, 2, {}, false, at::kDouble).item<double>();
    }
  }
  at::parallel_for(0, static_cast<std::int64_t>(parts.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      GradientPart& part = parts[static_cast<std::size_t>(n)];
      part.sum = sum_of_squares(part.values, part.size);
    }
  });
  std::vector<double> sums(parameters.size(), 0.0);
  for (const GradientPart& part : parts) sums[part.parameter] += part.sum;
  for (const GradientPart& part : parts) norms[part.parameter] = std::sqrt(sums[part.parameter]);
  return norms;
}

double combined_norm(std::span<const double> norms) {
  double sum = 0.0;
  for (const double norm : norms) sum += norm * norm;
  return std::sqrt(sum);
}

double global_grad_norm(const std::vector<TrainedParameter>& parameters) {
  return combined_norm(grad_norms(parameters));
}

}  // namespace dagmoe
