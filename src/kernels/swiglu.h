#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// y = SiLU(gate) * up, element by element; N elements.
template <class T>
struct SwiGluForward {
  std::int64_t N;
  const T* gate_N;
  const T* up_N;
  T* y_N;
};

/// With q = sigmoid(gate): grad_up = dy * gate * q; grad_gate = dy * up * q * (1 + gate * (1 - q)).
template <class T>
struct SwiGluBackward {
  std::int64_t N;
  const T* gate_N;
  const T* up_N;
  const T* grad_y_N;
  T* grad_gate_N;
  T* grad_up_N;
};

}  // namespace dagmoe
