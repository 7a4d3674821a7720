#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// y = weight * (x - mean) / sqrt(mean((x - mean)^2) + eps) per row of N values D wide. Without `subtract_mean` the
/// mean counts as 0, which makes it RMSNorm. Where squares exceed float, the row becomes NaN.
template <class T>
struct LayerNormForward {
  std::int64_t N, D;
  double eps;
  bool subtract_mean;
  const T* x_ND;
  const Accumulate<T>* weight_D;
  T* y_ND;
  Accumulate<T>* mean_N;  ///< both kept for backward
  Accumulate<T>* rstd_N;
  bool has_statistics = false;  ///< mean and rstd are there already: the rows are normalized again
};

/// With n = (x - mean) * rstd: dx += rstd * (w dy - mean(w dy) - n * mean(w dy n)), the first mean only with
/// `subtract_mean`; dw += sum over rows of dy * n.
template <class T>
struct LayerNormBackward {
  std::int64_t N, D;
  bool subtract_mean;
  const T* x_ND;
  const Accumulate<T>* weight_D;
  const Accumulate<T>* mean_N;
  const Accumulate<T>* rstd_N;
  const T* grad_y_ND;
  const T* grad_before_ND = nullptr;       ///< added to dx; null for nothing
  T* grad_x_ND = nullptr;                  ///< null when not wanted; may be grad_before_ND
  Accumulate<T>* grad_weight_D = nullptr;  ///< added to; null when not wanted
};

}  // namespace dagmoe
