#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/router.h"

namespace dagmoe {

/// How many tokens each expert got, a row for each MoE layer in order. Those of several forward passes add up to those
/// of one that holds all their tokens.
struct ExpertCounts {
  std::vector<std::vector<std::int64_t>> counts_LE;
  std::int64_t num_tokens = 0;  ///< every layer routed each of them

  ExpertCounts& operator+=(const ExpertCounts& other);
  bool operator==(const ExpertCounts&) const = default;
};
/// Empty for a dense model.
ExpertCounts expert_counts(const std::vector<Routing>& routing, std::int64_t num_experts);

/// Load-balancing loss as Hugging Face defines it (method.md 2.1, contracts.md 1.7): the tokens of all layers are
/// pooled, then E * sum_e f_e P_e with f_e the assignments to e per token and P_e the mean probability. Balanced
/// routing gives K. Sigmoid scores are normalized per token first. Gradient through P only.
///
/// f is that of `counts`, P that of `routing`: with the counts of a whole optimizer step (arXiv:2501.11873), the losses
/// of its micro batches, each times its share of the step's tokens, add up to the loss of one micro batch that holds
/// them all, and so do their gradients.
at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config,
                               const ExpertCounts& counts);
/// With the counts of these tokens alone.
at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config);
/// Sums over tokens of the routers' probabilities, [layers][E], without gradients: those of micro batches add up, so
/// that the balance of a whole step can be reported once its counts are known.
struct RouterSums {
  std::vector<std::vector<double>> probability_sums_LE;

  RouterSums& operator+=(const RouterSums& other);
};
RouterSums router_sums(const std::vector<Routing>& routing, const MoeConfig& config);
/// load_balancing_loss of all tokens behind the sums.
double balance_of(const RouterSums& sums, const ExpertCounts& counts);
/// The same for each layer alone: pooling hides imbalances that differ from layer to layer.
std::vector<double> layer_balance(const RouterSums& sums, const ExpertCounts& counts);
/// Router z-loss (arXiv:2202.08906): mean over tokens and layers of logsumexp(logits)^2. Shares of tokens add up as
/// above.
at::Tensor router_z_loss(const std::vector<Routing>& routing);
/// Whether any router's probabilities depend on what trains: otherwise the losses above have no gradient and can be
/// left out.
bool has_gradient(const std::vector<Routing>& routing);

/// How the tokens were spread over the experts, summed over the layers given.
struct ExpertUse {
  double max_over_mean = 0.0;  ///< mean over layers of the largest load / the mean load; 1 is balanced
  double dead_fraction = 0.0;  ///< share of all experts that got no token
};
ExpertUse expert_use(const std::vector<std::vector<std::int64_t>>& counts_LE);

}  // namespace dagmoe
