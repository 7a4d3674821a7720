#pragma once

#include <cstdint>

namespace dagmoe {

/// Elements that share a scale. bitsandbytes' block size for optimizer states.
inline constexpr std::int64_t kBlockSize8bit = 256;
constexpr std::int64_t num_blocks_8bit(std::int64_t num_elements) {
  return (num_elements + kBlockSize8bit - 1) / kBlockSize8bit;
}

/// One AdamW update of N parameters whose moments are codes of one byte, in blocks of 256 with the largest magnitude of
/// each block as its scale (Dettmers et al., arXiv 2110.02861):
///   g = grad_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
///   param = param_factor * param - step_size * m / (sqrt(v) / correction + eps)
/// The update uses m and v before they are rounded to the nearest level. One thing differs from bitsandbytes: a v above
/// zero never becomes zero, or a later gradient of zero would divide what is left of m by eps alone. N starts at a
/// block's first element.
struct AdamW8bit {
  std::int64_t N;
  const float* grad_N;
  float* param_N;
  std::uint8_t* m_N;  ///< codes of dynamic_map(true)
  std::uint8_t* v_N;  ///< codes of dynamic_map(false)
  float* m_scale_B;   ///< B = num_blocks_8bit(N); a moment is level[code] * scale
  float* v_scale_B;
  float grad_scale, eps;
  // 1 - beta2 has few digits left in float, so both parts come from double.
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float param_factor;  ///< 1 - lr * weight_decay
  float step_size;     ///< lr / (1 - beta1^t)
  float correction;    ///< sqrt(1 - beta2^t)
};

/// The 256 levels of the dynamic data type in rising order, as bitsandbytes' create_dynamic_map: 0, 1, and for each
/// decade 10^(i-7) ... 10^(i-6), i = 0 ... 6, the middles of 2^i equal intervals (2^(i+1) without sign), with sign
/// their negatives too. -1 is no level.
struct DynamicMap {
  float levels[256];
};
DynamicMap dynamic_map(bool is_signed);

}  // namespace dagmoe
