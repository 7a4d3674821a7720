#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// y = weight * x / sqrt(mean(x^2) + eps) per row of N values D wide; statistics in the accumulate type.
template <class T>
struct RmsNormForward {
  std::int64_t N, D;
  double eps;
  const T* x_ND;
  const Accumulate<T>* weight_D;
  T* y_ND;
  Accumulate<T>* rstd_N;  ///< 1 / sqrt(mean(x^2) + eps), kept for backward
};

/// With n = x * rstd: dx = rstd * (w * dy - n * mean(w * dy * n)); dw += sum over rows of dy * n.
template <class T>
struct RmsNormBackward {
  std::int64_t N, D;
  const T* x_ND;
  const Accumulate<T>* weight_D;
  const Accumulate<T>* rstd_N;
  const T* grad_y_ND;
  T* grad_x_ND;                  ///< null when not wanted
  Accumulate<T>* grad_weight_D;  ///< added to; null when not wanted
};

}  // namespace dagmoe
