#include "eval/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace dagmoe {

TokenSampler::TokenSampler(const GenerateRequest& request)
    : temperature_(request.temperature), top_p_(request.top_p), state_(request.seed) {}

TokenId TokenSampler::next(std::span<const float> logits_V) {
  const double highest = *std::max_element(logits_V.begin(), logits_V.end());
  std::vector<double> weights(logits_V.size());
  std::transform(logits_V.begin(), logits_V.end(), weights.begin(),
                 [&](float logit) { return std::exp((logit - highest) / temperature_); });
  std::vector<std::size_t> order(logits_V.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::size_t num_kept = 0;
  double kept = 0.0;
  while (num_kept < order.size() && (num_kept == 0 || kept < top_p_ * total)) kept += weights[order[num_kept++]];

  double rest = uniform() * kept;
  for (std::size_t i = 0; i + 1 < num_kept; ++i) {
    rest -= weights[order[i]];
    if (rest < 0.0) return static_cast<TokenId>(order[i]);
  }
  return static_cast<TokenId>(order[num_kept - 1]);
}

// In [0, 1) with 53 bits. SplitMix64 (Steele, Lea, Flood 2014).
double TokenSampler::uniform() {
  state_ += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace dagmoe
