#include "eval/python_random.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <unordered_set>
#include <utility>

namespace dagmoe {
namespace {

// MT19937 (Matsumoto, Nishimura 1998) and the init_by_array that CPython's _randommodule.c seeds it with.
constexpr std::size_t kShift = 397;
constexpr std::uint32_t kMatrix = 0x9908B0DF, kUpperBit = 0x80000000, kLowerBits = 0x7FFFFFFF;
constexpr std::uint32_t kBaseSeed = 19650218;

std::uint32_t tempered(std::uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680u;
  y ^= (y << 15) & 0xEFC60000u;
  return y ^ (y >> 18);
}

double uniform_of(std::uint32_t high, std::uint32_t low) {
  return (static_cast<double>(high >> 5) * 67108864.0 + static_cast<double>(low >> 6)) /
         9007199254740992.0;  // 2^26, 2^53
}

}  // namespace

PythonRandom::PythonRandom(std::uint64_t seed) {
  state_[0] = kBaseSeed;
  for (std::uint32_t i = 1; i < kStateSize; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;

  std::vector<std::uint32_t> key = {static_cast<std::uint32_t>(seed)};
  if (seed >> 32 != 0) key.push_back(static_cast<std::uint32_t>(seed >> 32));
  std::size_t i = 1, j = 0;
  const auto advance = [&] {
    if (++i < kStateSize) return;
    state_[0] = state_[kStateSize - 1];
    i = 1;
  };
  const auto mixed = [&](std::uint32_t multiplier) {
    return state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * multiplier);
  };
  for (std::size_t n = 0; n < kStateSize; ++n) {
    state_[i] = mixed(1664525u) + key[j] + static_cast<std::uint32_t>(j);
    advance();
    j = (j + 1) % key.size();
  }
  for (std::size_t n = 0; n + 1 < kStateSize; ++n) {
    state_[i] = mixed(1566083941u) - static_cast<std::uint32_t>(i);
    advance();
  }
  state_[0] = kUpperBit;
}

void PythonRandom::twist() {
  const auto step = [this](std::size_t i, std::size_t next, std::size_t shifted) {
    const std::uint32_t y = (state_[i] & kUpperBit) | (state_[next] & kLowerBits);
    state_[i] = state_[shifted] ^ (y >> 1) ^ ((0u - (y & 1u)) & kMatrix);
  };
  // In three parts without a remainder, which compilers turn into vector code.
  for (std::size_t i = 0; i < kStateSize - kShift; ++i) step(i, i + 1, i + kShift);
  for (std::size_t i = kStateSize - kShift; i < kStateSize - 1; ++i) step(i, i + 1, i + kShift - kStateSize);
  step(kStateSize - 1, 0, kShift - 1);
  position_ = 0;
}

std::uint32_t PythonRandom::next_word() {
  if (position_ == kStateSize) twist();
  return tempered(state_[position_++]);
}

std::uint64_t PythonRandom::bits(int num_bits) {
  if (num_bits <= 32) return next_word() >> (32 - num_bits);
  const std::uint64_t low = next_word();
  return low | static_cast<std::uint64_t>(next_word() >> (64 - num_bits)) << 32;
}

double PythonRandom::uniform() {
  const std::uint32_t high = next_word(), low = next_word();
  return uniform_of(high, low);
}

std::uint64_t PythonRandom::below(std::uint64_t n) {
  const int num_bits = static_cast<int>(std::bit_width(n));
  std::uint64_t value = bits(num_bits);
  while (value >= n) value = bits(num_bits);
  return value;
}

std::vector<std::size_t> PythonRandom::sample(std::size_t n, std::size_t k) {
  // CPython's estimate of when a set of k is smaller than a list of n.
  std::size_t limit = 21;
  if (k > 5) {
    std::size_t power = 1;
    while (power < 3 * k) power *= 4;
    limit += power;
  }
  std::vector<std::size_t> chosen;
  if (n <= limit) {
    std::vector<std::size_t> pool(n);
    std::iota(pool.begin(), pool.end(), std::size_t{0});
    for (std::size_t i = 0; i < k; ++i) {
      const std::size_t j = below(n - i);
      chosen.push_back(pool[j]);
      pool[j] = pool[n - i - 1];
    }
    return chosen;
  }
  std::unordered_set<std::size_t> taken;
  while (chosen.size() < k) {
    const std::size_t j = below(n);
    if (taken.insert(j).second) chosen.push_back(j);
  }
  return chosen;
}

std::vector<std::size_t> PythonRandom::choices(std::size_t n, std::size_t count) {
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < count; ++i)
    chosen.push_back(static_cast<std::size_t>(std::floor(uniform() * static_cast<double>(n))));
  return chosen;
}

double PythonRandom::sum_of_choices(std::span<const double> values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0.0;
  std::array<std::uint32_t, kStateSize> words{};
  for (std::size_t left = values.size(); left > 0;) {
    if (position_ == kStateSize) twist();
    if (position_ % 2 != 0) {  // a draw that two blocks share
      sum += values[static_cast<std::size_t>(uniform() * n)];
      --left;
      continue;
    }
    const std::size_t draws = std::min(left, (kStateSize - position_) / 2);
    for (std::size_t i = 0; i < 2 * draws; ++i) words[i] = tempered(state_[position_ + i]);
    for (std::size_t i = 0; i < draws; ++i)
      sum += values[static_cast<std::size_t>(uniform_of(words[2 * i], words[2 * i + 1]) * n)];
    position_ += 2 * draws;
    left -= draws;
  }
  return sum;
}

std::vector<std::size_t> PythonRandom::shuffled(std::size_t n) {
  std::vector<std::size_t> items(n);
  std::iota(items.begin(), items.end(), std::size_t{0});
  for (std::size_t i = n; i-- > 1;) std::swap(items[i], items[below(i + 1)]);
  return items;
}

}  // namespace dagmoe
