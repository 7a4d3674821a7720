#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"

namespace dagmoe {

/// What a router decided for T tokens. Returned, never stored: losses, metrics and expert selection are pure functions
/// of it.
struct Routing {
  at::Tensor logits_TE;      ///< float (double in gradient checks)
  at::Tensor weights_TK;     ///< g_i, the final combine weights, same dtype as the logits
  at::Tensor expert_ids_TK;  ///< int64
};

/// Logits, scores, top-K and weights in float whatever the activations are. Ties: the lower expert index first.
Routing route(const at::Tensor& x_TD, const at::Tensor& router_ED, const MoeConfig& config);

}  // namespace dagmoe
