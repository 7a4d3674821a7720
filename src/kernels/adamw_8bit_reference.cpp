#include <algorithm>
#include <cmath>

#include "kernels/adamw_8bit.h"
#include "kernels/reference.h"

namespace dagmoe {

DynamicMap dynamic_map(bool is_signed) {
  DynamicMap map{};
  float* levels = map.levels;
  std::size_t size = 0;
  levels[size++] = 0.0F;
  levels[size++] = 1.0F;
  for (int i = 0; i < 7; ++i) {
    const int num_intervals = 1 << (is_signed ? i : i + 1);
    for (int n = 0; n < num_intervals; ++n) {
      const double middle = 0.1 + 0.9 * (n + 0.5) / num_intervals;
      const auto level = static_cast<float>(std::pow(10.0, i - 6) * middle);
      levels[size++] = level;
      if (is_signed) levels[size++] = -level;
    }
  }
  std::sort(levels, levels + size);
  return map;
}

namespace reference {
namespace {

std::uint8_t nearest_code(const DynamicMap& map, float x) {
  const float* above = std::upper_bound(map.levels + 1, map.levels + 255, x);
  const float* nearest = x - *(above - 1) <= *above - x ? above - 1 : above;
  return static_cast<std::uint8_t>(nearest - map.levels);
}

}  // namespace

void adamw_8bit(const AdamW8bit& args) {
  static const DynamicMap m_map = dynamic_map(true), v_map = dynamic_map(false);
  float m[kBlockSize8bit], v[kBlockSize8bit];
  for (std::int64_t begin = 0, block = 0; begin < args.N; begin += kBlockSize8bit, ++block) {
    const std::int64_t size = std::min(kBlockSize8bit, args.N - begin);
    float m_most = 0, v_most = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t n = begin + i;
      const float g = args.grad_scale * args.grad_N[n];
      m[i] = args.beta1 * (m_map.levels[args.m_N[n]] * args.m_scale_B[block]) + args.one_minus_beta1 * g;
      v[i] = args.beta2 * (v_map.levels[args.v_N[n]] * args.v_scale_B[block]) + args.one_minus_beta2 * (g * g);
      m_most = std::max(m_most, std::abs(m[i]));
      v_most = std::max(v_most, v[i]);
      args.param_N[n] = args.param_factor * args.param_N[n] -
                        args.step_size * (m[i] / (std::sqrt(v[i]) / args.correction + args.eps));
    }
    args.m_scale_B[block] = m_most;
    args.v_scale_B[block] = v_most;
    for (std::int64_t i = 0; i < size; ++i) {
      args.m_N[begin + i] = nearest_code(m_map, m_most > 0 ? m[i] / m_most : 0);
      const std::uint8_t v_code = nearest_code(v_map, v_most > 0 ? v[i] / v_most : 0);
      args.v_N[begin + i] = v_code == 0 && v[i] > 0 ? 1 : v_code;
    }
  }
}

}  // namespace reference
}  // namespace dagmoe
