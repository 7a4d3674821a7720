#pragma once

#include <cstdint>
#include <string_view>

namespace dagmoe {

/// Random numbers that are a function of their place, not of those before them: neither the number of threads nor how
/// sequences are divided into micro batches changes one. SplitMix64 (Steele, Lea, Flood 2014).
class RandomStream {
 public:
  /// The stream of one sequence of a step.
  RandomStream(std::uint64_t seed, std::uint64_t sequence)
      : start_(mix(mix(seed + kGamma) + (sequence + 1) * kGamma)) {}
  std::uint64_t bits(std::uint64_t index) const { return mix(start_ + (index + 1) * kGamma); }
  /// The middles of 2^24 intervals of (0, 1): neither end occurs.
  double uniform(std::uint64_t index) const { return (static_cast<double>(bits(index) >> 40) + 0.5) * 0x1p-24; }

 private:
  static constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15;
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::uint64_t start_;
};

/// A number for a name, the same on every machine (FNV-1a).
inline std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

}  // namespace dagmoe
