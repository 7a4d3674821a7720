#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What the adapters that are mixtures themselves (smore, smora) share, and a step of balancing that routers take too.

namespace dagmoe {

/// A parameter of an adapter: its name below the module it adapts, and its shape.
using NamedShape = std::pair<std::string, std::vector<std::int64_t>>;

/// Throws ConfigError "WHERE.PROBLEM" of all problems, when there is one.
void throw_config_problems(std::string_view where, const std::vector<std::string>& problems);

/// Throws InternalError unless `tensors` are as many as `shapes`, of these shapes and in this order: what a file holds
/// is checked where it is read.
void expect_shapes(std::string_view adapter, const std::vector<NamedShape>& shapes,
                   const std::vector<at::Tensor>& tensors);

/// What routing is computed in, whatever the activations are: float, or double for double.
at::ScalarType routing_dtype(const at::Tensor& x);

/// The k largest along the last dimension, largest first; of equal scores the lower index first, which at::topk does
/// not promise. `scores` is float or double; not differentiable.
at::Tensor stable_top_k(const at::Tensor& scores, std::int64_t k);

/// How many of `ids` are 0, 1, .. `num_experts - 1`.
std::vector<std::int64_t> count_ids(const at::Tensor& ids, std::int64_t num_experts);

/// bias + rate * sign(mean count - count): a step of balancing without a loss (arXiv:2408.15664), after which those
/// chosen too seldom gain. For routers of a model and for the ranks of SMoRA.
at::Tensor balanced_bias(const at::Tensor& bias, const std::vector<std::int64_t>& counts, double rate);

/// Uniform in +-1/sqrt(fan_in), in place: torch.nn.init.kaiming_uniform_ with a = sqrt(5), as torch.nn.Linear and PEFT
/// draw. Drawn in float whatever the tensor is, so that a seed means the same numbers.
void fill_kaiming_uniform(const at::Tensor& tensor, std::int64_t fan_in, at::Generator& generator);
void fill_uniform(const at::Tensor& tensor, double low, double high, at::Generator& generator);

}  // namespace dagmoe
