#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// Rotary position embedding on half-split pairs (i, i + d/2), as Hugging Face does, of N tokens with H heads of width
/// d:
///   y_i = x_i cos_i - x_{i+d/2} sin_i,   y_{i+d/2} = x_{i+d/2} cos_i + x_i sin_i
/// The rows of a token lie `stride` elements apart from the next token's, so that it works inside a fused qkv matrix.
/// `sign` is +1 for forward and -1 for backward, which is the rotation the other way. x and y may be the same memory.
template <class T>
struct Rope {
  std::int64_t N, H, d, x_stride, y_stride;
  const Accumulate<T>* cos_Nd2;
  const Accumulate<T>* sin_Nd2;
  int sign;
  const T* x_NHd;
  T* y_NHd;
};

}  // namespace dagmoe
