#include "checkpoint/safetensors_convert.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// Tensors may lie unaligned in their file.
template <class T>
T load(std::span<const std::byte> bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void store(std::span<std::byte> bytes, std::size_t index, T value) {
  std::memcpy(bytes.data() + index * sizeof(T), &value, sizeof(T));
}

double load_as(DType dtype, std::span<const std::byte> bytes, std::size_t index) {
  if (dtype == DType::kF16) return half_to_float(load<std::uint16_t>(bytes, index));
  if (dtype == DType::kBF16) return bfloat16_to_float(load<std::uint16_t>(bytes, index));
  if (dtype == DType::kF32) return load<float>(bytes, index);
  return load<double>(bytes, index);
}

/// Stores a value and returns what was stored.
double store_as(DType dtype, std::span<std::byte> bytes, std::size_t index, double value) {
  const float narrow = static_cast<float>(value);
  if (dtype == DType::kF32) return store(bytes, index, narrow), narrow;
  if (dtype == DType::kF64) return store(bytes, index, value), value;
  const bool is_half = dtype == DType::kF16;
  const std::uint16_t bits = is_half ? float_to_half(narrow) : float_to_bfloat16(narrow);
  store(bytes, index, bits);
  return is_half ? half_to_float(bits) : bfloat16_to_float(bits);
}

}  // namespace

std::uint16_t float_to_half(float value) {
  constexpr std::uint32_t kInfinity = 0x7F800000, kSmallestNormalHalf = 0x38800000, k65536 = 0x47800000;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7FFFFFFF;
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude > kInfinity) return static_cast<std::uint16_t>(sign | 0x7E00);
  if (magnitude >= k65536) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (magnitude < kSmallestNormalHalf) {
    // Neighbours of 0.5f are as far apart as subnormal halves, so the addition rounds as they need.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0.5f)));
  }
  const std::uint32_t rebased = magnitude - (std::uint32_t{127 - 15} << 23);
  const std::uint32_t rounded = (rebased + 0xFFF + (rebased >> 13 & 1)) >> 13;
  return static_cast<std::uint16_t>(sign | rounded);
}

std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays a NaN without its lower half
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

std::vector<std::byte> convert_floats(std::span<const std::byte> bytes, DType from, DType to,
                                      const std::string& where) {
  if (!is_float(from) || !is_float(to)) throw InternalError(where + ": only float types are converted");
  const std::size_t count = bytes.size() / static_cast<std::size_t>(dtype_size(from));
  std::vector<std::byte> result(count * static_cast<std::size_t>(dtype_size(to)));
  for (std::size_t i = 0; i < count; ++i) {
    const double value = load_as(from, bytes, i);
    if (std::isinf(store_as(to, result, i, value)) && std::isfinite(value)) {
      throw InputError(str(where, ": value ", value, " is too large for ", dtype_name(to)));
    }
  }
  return result;
}

}  // namespace dagmoe
