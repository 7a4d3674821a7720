#include "model/neftune.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

namespace dagmoe {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): any place of the stream without those before it.
constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15;
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// 24 random bits to the middles of 2^24 intervals of (-1, 1): symmetric, and neither end occurs.
float uniform(std::uint64_t bits) {
  return static_cast<float>((static_cast<double>(bits >> 40) + 0.5) * 0x1p-23 - 1.0);
}

}  // namespace

at::Tensor neftune_noise(const std::vector<std::int64_t>& segment_offsets, std::int64_t hidden_size, double alpha,
                         std::uint64_t seed, std::int64_t first_sequence) {
  const std::int64_t D = hidden_size;
  const at::Tensor noise_TD = at::empty({segment_offsets.back(), D}, at::kFloat);
  float* noise = noise_TD.mutable_data_ptr<float>();
  for (std::size_t s = 0; s + 1 < segment_offsets.size(); ++s) {
    const std::int64_t begin = segment_offsets[s], S = segment_offsets[s + 1] - begin;
    const auto bound = static_cast<float>(alpha / std::sqrt(static_cast<double>(S * D)));
    const std::uint64_t sequence = static_cast<std::uint64_t>(first_sequence) + s;
    const std::uint64_t stream = mix(mix(seed + kGamma) + (sequence + 1) * kGamma);
    at::parallel_for(0, S * D, 16384, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i)
        noise[begin * D + i] = bound * uniform(mix(stream + static_cast<std::uint64_t>(i + 1) * kGamma));
    });
  }
  return noise_TD;
}

}  // namespace dagmoe
