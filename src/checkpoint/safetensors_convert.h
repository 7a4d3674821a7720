#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace dagmoe {

/// IEEE half precision, given as its bits.
inline float half_to_float(std::uint16_t half) {
  constexpr float kSmallestSubnormal = 0x1p-24f;
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31u, mantissa = half & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * kSmallestSubnormal;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  const std::uint32_t wide_exponent = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

/// The 16 bits of a bfloat16 number are the upper half of the float's.
inline float bfloat16_to_float(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

/// Rounded to nearest even; a value that is too large becomes infinite.
std::uint16_t float_to_half(float value);
std::uint16_t float_to_bfloat16(float value);

/// The values of a float tensor in another float type, rounded to nearest even (F64 by way of F32). Throws InputError
/// with `where` when a finite value would become infinite.
std::vector<std::byte> convert_floats(std::span<const std::byte> bytes, DType from, DType to, const std::string& where);

}  // namespace dagmoe
