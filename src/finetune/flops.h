#pragma once

#include <cstdint>

#include "finetune/run_setup.h"

namespace dagmoe {

struct StepTokens {
  std::int64_t tokens = 0, supervised_tokens = 0;
};

/// Floating-point operations, multiply and add counted apart, of all products with weight matrices in one optimizer
/// step: forward, gradients of inputs down to the lowest parameter that trains, gradients of the matrices that train,
/// and the layers' forward pass again with `recompute`. The attention's own products and everything element-wise are
/// left out. Experts count for the tokens that reach them, the output matrix for supervised tokens.
double step_flops(const RunSetup& setup, const StepTokens& step, bool recompute);

}  // namespace dagmoe
