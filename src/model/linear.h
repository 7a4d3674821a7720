#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "peft/lora.h"
#include "peft/mixture.h"

namespace dagmoe {

/// y = x W^T + b and what adapters add to it. `weight` is [outputs, inputs]; `bias` may be undefined.
struct Linear {
  at::Tensor weight, bias;
  std::vector<LoraAdapter> adapters = {};
  std::vector<MixtureAdapter> mixtures = {};
};

/// In the dtype of x, to which weights are cast where they differ.
at::Tensor linear(const at::Tensor& x_XI, const Linear& layer, const AdapterPass& pass = {});

}  // namespace dagmoe
