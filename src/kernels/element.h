#pragma once

#include <cstdint>

namespace dagmoe {

/// A bfloat16 number as stored: the upper half of an IEEE float. Only a storage type here; kernels compute in float.
struct Bf16 {
  std::uint16_t bits;
};

/// What a kernel over elements T computes and keeps weights in: double for double, float for float and Bf16.
template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateType<T>::type;

}  // namespace dagmoe
