#include "data/epoch_order.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dagmoe {
namespace {

__extension__ using Uint128 = unsigned __int128;

std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// SplitMix64 (Steele, Lea, Flood 2014): a counter and a mixer, so a handful of seeds are as good as one long run.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15ULL;
    return mixed(state_);
  }
  // Uniform in [0, bound), without modulo bias (arXiv:1805.10941).
  std::uint64_t below(std::uint64_t bound) {
    Uint128 product = static_cast<Uint128>(next()) * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
      const std::uint64_t threshold = (0 - bound) % bound;
      while (static_cast<std::uint64_t>(product) < threshold) product = static_cast<Uint128>(next()) * bound;
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

 private:
  std::uint64_t state_;
};

template <class Item>
std::vector<Item> shuffled(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  // One draw mixes the seed before the epoch comes in: (seed, epoch + 1) and (seed + 1, epoch) have nothing in common.
  SplitMix64 generator(SplitMix64(seed).next() + static_cast<std::uint64_t>(epoch));
  std::vector<Item> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), Item{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[generator.below(i)]);  // Fisher-Yates
  return order;
}

}  // namespace

std::vector<std::int64_t> epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  return shuffled<std::int64_t>(size, seed, epoch);
}

std::vector<std::uint32_t> short_epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  return shuffled<std::uint32_t>(size, seed, epoch);
}

std::int64_t permuted_item(std::int64_t index, std::int64_t size, std::uint64_t seed) {
  int half_bits = 1;
  while ((std::uint64_t{1} << (2 * half_bits)) < static_cast<std::uint64_t>(size)) ++half_bits;
  const std::uint64_t half_mask = (std::uint64_t{1} << half_bits) - 1;
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half_bits, right = value & half_mask;
    for (std::uint64_t round = 1; round <= 4; ++round) {
      const std::uint64_t other = left ^ (mixed(right + mixed(seed + round * 0x9E3779B97F4A7C15ULL)) & half_mask);
      left = right;
      right = other;
    }
    value = (left << half_bits) | right;
  } while (value >= static_cast<std::uint64_t>(size));
  return static_cast<std::int64_t>(value);
}

std::vector<std::int64_t> draws_per_epoch(const std::vector<SourceShare>& shares) {
  std::vector<std::int64_t> draws;
  const bool has_weights =
      std::ranges::any_of(shares, [](const SourceShare& share) { return share.weight.has_value(); });
  double total = 0.0, weights = 0.0;
  for (const SourceShare& share : shares) {
    total += static_cast<double>(share.size);
    weights += share.weight.value_or(1.0);
  }
  for (const SourceShare& share : shares) {
    const double count = has_weights ? total * share.weight.value_or(1.0) / weights
                                     : static_cast<double>(share.size) * share.epochs.value_or(1.0);
    draws.push_back(std::max<std::int64_t>(1, std::llround(count)));
  }
  return draws;
}

}  // namespace dagmoe
