#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/element.h"

// For the reference kernels and tests. The SIMD files never include this: it holds code, and the linker keeps one copy
// of it.

namespace dagmoe {

/// The value of a stored element in the type that kernels compute in.
inline double to_accumulate(double value) { return value; }
inline float to_accumulate(float value) { return value; }
inline float to_accumulate(Bf16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

/// Rounds to nearest, ties to even; a NaN stays a NaN.
inline Bf16 to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

/// The stored element nearest to a computed value.
template <class T>
inline T to_element(Accumulate<T> value) {
  return value;
}
template <>
inline Bf16 to_element<Bf16>(float value) {
  return to_bf16(value);
}

}  // namespace dagmoe
