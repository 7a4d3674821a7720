#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"
#include "model/router.h"

namespace dagmoe {

/// Load-balancing loss as Hugging Face defines it (method.md 2.1, contracts.md 1.7): the tokens of all layers are
/// pooled, then E * sum_e f_e P_e with f_e the assignments to e per token and P_e the mean probability. Balanced
/// routing gives K. Sigmoid scores are normalized per token first. Gradient through P only.
at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config);
/// Router z-loss (arXiv:2202.08906): mean over tokens and layers of logsumexp(logits)^2.
at::Tensor router_z_loss(const std::vector<Routing>& routing);

/// How the tokens were spread over the experts, summed over the layers given.
struct ExpertUse {
  double max_over_mean = 0.0;  ///< mean over layers of the largest load / the mean load; 1 is balanced
  double dead_fraction = 0.0;  ///< share of all experts that got no token
};
ExpertUse expert_use(const std::vector<std::vector<std::int64_t>>& counts_LE);

}  // namespace dagmoe
