#include "kernels/element_convert.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/catch.h"

using namespace dagmoe;

TEST_CASE("element_convert: float to bf16 rounds as LibTorch does", "[kernels]") {
  // Every upper half, with lower halves below, at and above the tie.
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t lower : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      const std::uint32_t bits = (upper << 16) | lower;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      if (std::isnan(value)) {
        if (!std::isnan(to_accumulate(to_bf16(value)))) FAIL("NaN became a number at " << bits);
      } else if (to_bf16(value).bits != c10::BFloat16(value).x) {
        FAIL("wrong rounding of " << value);
      }
    }
  }
  SUCCEED();
}

TEST_CASE("element_convert: bf16 to float and back is the identity", "[kernels]") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 value = {static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_accumulate(value))) continue;
    if (to_bf16(to_accumulate(value)).bits != bits) FAIL("not kept: " << bits);
  }
  SUCCEED();
}
