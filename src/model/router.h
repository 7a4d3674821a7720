#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace dagmoe {

/// What a router decided for T tokens. Returned, never stored: losses, metrics and expert selection are pure functions
/// of it.
struct Routing {
  at::Tensor logits_TE;      ///< float (double in gradient checks)
  at::Tensor weights_TK;     ///< g_i, the final combine weights, same dtype as the logits
  at::Tensor expert_ids_TK;  ///< int64
};

/// What decides the choice of experts besides the logits; each may be undefined.
struct RouterChoice {
  at::Tensor bias_E;         ///< float: the K largest score + bias are chosen; a bias of zeros changes nothing
  at::Tensor expert_ids_TK;  ///< these are taken, nothing is chosen
};

/// Logits, scores, top-K and weights in float whatever the activations are. Ties: the larger logit, then the lower
/// expert index first.
Routing route(const at::Tensor& x_TD, const at::Tensor& router_ED, const MoeConfig& config,
              const RouterChoice& choice = {});

/// One step of balancing without a loss (arXiv:2408.15664): b_e + rate * sign(mean load - load_e), so that experts with
/// few tokens gain. `counts_E`: the tokens of each expert in the optimizer step.
at::Tensor updated_router_bias(const at::Tensor& bias_E, const std::vector<std::int64_t>& counts_E, double rate);

}  // namespace dagmoe
