#pragma once

#include <ATen/core/Tensor.h>

namespace dagmoe {

/// The best rate of square matrix products that this machine shows in about a second, multiply and add counted apart,
/// per second: the yardstick of the progress line.
double measure_gemm_peak(at::ScalarType dtype);

}  // namespace dagmoe
