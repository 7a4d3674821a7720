#pragma once

#include <cstdint>
#include <vector>

#include "finetune/run_setup.h"

namespace dagmoe {

struct StepTokens {
  std::int64_t tokens = 0, supervised_tokens = 0;
};

/// Floating-point operations, multiply and add counted apart, of all products with weight matrices in one optimizer
/// step: forward, gradients of inputs down to the lowest parameter that trains, gradients of the matrices that train,
/// and the forward pass again of the layers of `setup.recompute`. The attention's own products and everything
/// element-wise are left out. Experts count for the tokens that reach them, the output matrix for supervised tokens.
double step_flops(const RunSetup& setup, const StepTokens& step);

/// What running each layer again costs for one token of a step. 0 for layers that the backward pass does not reach:
/// they keep nothing and never run again.
std::vector<double> recompute_flops(const RunSetup& setup);

}  // namespace dagmoe
