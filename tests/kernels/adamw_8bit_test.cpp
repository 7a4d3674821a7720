// The 8-bit AdamW of every table: against the equations in double, against the map written level by level, and at block
// ends.
#include "kernels/adamw_8bit.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8, kLr = 1e-2, kWeightDecay = 0.1, kGradScale = 0.5;

struct Memory {
  std::vector<float> param, m_scale, v_scale;
  std::vector<std::uint8_t> m, v;
};

Memory fresh(std::int64_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Memory memory;
  memory.param.resize(static_cast<std::size_t>(size));
  for (float& p : memory.param) p = normal(generator);
  memory.m.resize(memory.param.size());
  memory.v.resize(memory.param.size());
  memory.m_scale.resize(static_cast<std::size_t>(num_blocks_8bit(size)));
  memory.v_scale.resize(memory.m_scale.size());
  return memory;
}

// Gradients over six decades, every ninth of them zero.
std::vector<float> gradients(std::int64_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i] = i % 9 == 0 ? 0.0F : normal(generator) * std::exp(3 * normal(generator));
  return all;
}

void step(const KernelTable<float>& table, Memory& memory, const std::vector<float>& grad, int t) {
  table.adamw_8bit({.N = static_cast<std::int64_t>(grad.size()),
                    .grad_N = grad.data(),
                    .param_N = memory.param.data(),
                    .m_N = memory.m.data(),
                    .v_N = memory.v.data(),
                    .m_scale_B = memory.m_scale.data(),
                    .v_scale_B = memory.v_scale.data(),
                    .grad_scale = static_cast<float>(kGradScale),
                    .eps = static_cast<float>(kEps),
                    .beta1 = static_cast<float>(kBeta1),
                    .one_minus_beta1 = static_cast<float>(1 - kBeta1),
                    .beta2 = static_cast<float>(kBeta2),
                    .one_minus_beta2 = static_cast<float>(1 - kBeta2),
                    .param_factor = static_cast<float>(1 - kLr * kWeightDecay),
                    .step_size = static_cast<float>(kLr / (1 - std::pow(kBeta1, t))),
                    .correction = static_cast<float>(std::sqrt(1 - std::pow(kBeta2, t)))});
}

// The levels as the header defines them, in double, each from the ends of its interval.
std::vector<double> levels_in_double(bool is_signed) {
  std::vector<double> levels = {0, 1};
  for (int i = 0; i < 7; ++i) {
    const int count = is_signed ? 1 << i : 2 << i;
    for (int n = 0; n < count; ++n) {
      const double low = 0.1 + 0.9 * n / count, high = 0.1 + 0.9 * (n + 1) / count;
      levels.push_back(std::pow(10, i - 6) * (low + high) / 2);
      if (is_signed) levels.push_back(-levels.back());
    }
  }
  std::sort(levels.begin(), levels.end());
  return levels;
}

// |x - level[code]| may exceed the distance of the nearest level only by what rounding x to float can do.
void require_nearest(const std::vector<double>& levels, std::uint8_t code, double x) {
  double nearest = 2;
  for (const double level : levels) nearest = std::min(nearest, std::abs(level - x));
  INFO("x " << x << " code " << int{code} << " level " << levels[code] << " nearest at distance " << nearest);
  REQUIRE(std::abs(levels[code] - x) <= nearest + 2e-6 * std::abs(x));
}

template <class Check>
void for_each_table(Check check) {
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<float>* table = kernels_for<float>(isa);
    if (table == nullptr) continue;
    INFO("table " << isa_name(isa));
    check(*table);
  }
}

}  // namespace

TEST_CASE("adamw_8bit: the maps hold 256 rising levels, those of the definition", "[kernels]") {
  for (const bool is_signed : {true, false}) {
    const DynamicMap map = dynamic_map(is_signed);
    const std::vector<double> expected = levels_in_double(is_signed);
    REQUIRE(expected.size() == 256);
    for (std::size_t i = 0; i < 256; ++i) {
      REQUIRE(static_cast<double>(map.levels[i]) == Approx(expected[i]).epsilon(1e-7));
      if (i > 0) REQUIRE(map.levels[i] > map.levels[i - 1]);
    }
  }
}

TEST_CASE("adamw_8bit: every table follows the equations in double and stores the nearest levels", "[kernels]") {
  const std::vector<double> m_levels = levels_in_double(true), v_levels = levels_in_double(false);
  for_each_table([&](const KernelTable<float>& table) {
    for (const std::int64_t size : {1, 7, 16, 255, 256, 257, 1000}) {
      INFO("size " << size);
      Memory memory = fresh(size, 1);
      for (int t = 1; t <= 4; ++t) {
        const Memory before = memory;
        const std::vector<float> grad = gradients(size, static_cast<unsigned>(t));
        step(table, memory, grad, t);
        for (std::int64_t block = 0; block < num_blocks_8bit(size); ++block) {
          const auto b = static_cast<std::size_t>(block);
          const std::size_t begin = b * 256, end = std::min(begin + 256, grad.size());
          std::vector<double> m, v;
          double m_most = 0, v_most = 0;
          for (std::size_t i = begin; i < end; ++i) {
            const double g = kGradScale * static_cast<double>(grad[i]);
            m.push_back(kBeta1 * m_levels[before.m[i]] * static_cast<double>(before.m_scale[b]) + (1 - kBeta1) * g);
            v.push_back(kBeta2 * v_levels[before.v[i]] * static_cast<double>(before.v_scale[b]) + (1 - kBeta2) * g * g);
            m_most = std::max(m_most, std::abs(m.back()));
            v_most = std::max(v_most, v.back());
            const double m_hat = m.back() / (1 - std::pow(kBeta1, t)), v_hat = v.back() / (1 - std::pow(kBeta2, t));
            const double p0 = static_cast<double>(before.param[i]);
            const double expected = p0 - kLr * kWeightDecay * p0 - kLr * m_hat / (std::sqrt(v_hat) + kEps);
            INFO("step " << t << " element " << i);
            REQUIRE(std::abs(static_cast<double>(memory.param[i]) - expected) <= kFloatTolerance * (1 + std::abs(p0)));
          }
          REQUIRE(static_cast<double>(memory.m_scale[b]) == Approx(m_most).epsilon(kFloatTolerance));
          REQUIRE(static_cast<double>(memory.v_scale[b]) == Approx(v_most).epsilon(kFloatTolerance));
          for (std::size_t i = begin; i < end; ++i) {
            if (m_most > 0) require_nearest(m_levels, memory.m[i], m[i - begin] / m_most);
            if (v[i - begin] > 0 && memory.v[i] == 1) {
              REQUIRE(v[i - begin] / v_most < (v_levels[1] + v_levels[2]) / 2 * (1 + 1e-6));  // never rounded to zero
            } else if (v_most > 0) {
              require_nearest(v_levels, memory.v[i], v[i - begin] / v_most);
            }
          }
        }
      }
    }
  });
}

TEST_CASE("adamw_8bit: every code of both moments reads as its level and is written back", "[kernels]") {
  const DynamicMap m_map = dynamic_map(true), v_map = dynamic_map(false);
  for_each_table([&](const KernelTable<float>& table) {
    // With betas of 1 and no gradient the moments stay as they are.
    Memory memory = fresh(256, 1);
    std::fill(memory.param.begin(), memory.param.end(), 0.0F);
    for (std::size_t i = 0; i < 256; ++i) memory.m[i] = memory.v[i] = static_cast<std::uint8_t>(i);
    memory.m_scale[0] = 4.0F;
    memory.v_scale[0] = 9.0F;
    const Memory before = memory;
    const std::vector<float> grad(256, 0.0F);
    table.adamw_8bit({256, grad.data(), memory.param.data(), memory.m.data(), memory.v.data(), memory.m_scale.data(),
                      memory.v_scale.data(), 1.0F, 1.0F, 1.0F, 0.0F, 1.0F, 0.0F, 1.0F, 1.0F, 1.0F});
    REQUIRE(memory.m == before.m);
    REQUIRE(memory.v == before.v);
    REQUIRE(memory.m_scale == before.m_scale);
    REQUIRE(memory.v_scale == before.v_scale);
    for (std::size_t i = 0; i < 256; ++i) {
      const double expected =
          -4.0 * static_cast<double>(m_map.levels[i]) / (3.0 * std::sqrt(static_cast<double>(v_map.levels[i])) + 1.0);
      REQUIRE(static_cast<double>(memory.param[i]) == Approx(expected).epsilon(kFloatTolerance));
    }
  });
}

TEST_CASE("adamw_8bit: gradients of zero change nothing, however often, and a small v is never lost", "[kernels]") {
  for_each_table([&](const KernelTable<float>& table) {
    Memory memory = fresh(300, 1);
    const std::vector<float> start = memory.param, zeros(300, 0.0F);
    for (int t = 1; t <= 3; ++t) step(table, memory, zeros, t);
    for (std::size_t i = 0; i < start.size(); ++i)
      REQUIRE(memory.param[i] == Approx(start[i] * std::pow(1 - kLr * kWeightDecay, 3)).epsilon(kFloatTolerance));

    // v of the second element is 1e-8 of the first's. Were it stored as zero, the next update would be m / eps.
    Memory sparse = fresh(256, 1);
    std::vector<float> grad(256, 0.0F);
    grad[0] = 1.0F;
    grad[1] = 1e-4F;
    step(table, sparse, grad, 1);
    REQUIRE(sparse.v[1] == 1);
    REQUIRE(sparse.v[2] == 0);
    const float before = sparse.param[1];
    step(table, sparse, std::vector<float>(256, 0.0F), 2);
    REQUIRE(std::abs(sparse.param[1] - before) < 2 * kLr);
  });
}
