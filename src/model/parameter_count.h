#pragma once

#include <cstdint>

#include "model/config.h"

namespace dagmoe {

/// The length of parameter_shapes(config), without making the list: a config may ask for billions of tensors, and
/// whoever has not compared it with its weights yet must not write out their names.
std::int64_t num_parameter_tensors(const ModelConfig& config);

}  // namespace dagmoe
