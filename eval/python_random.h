#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dagmoe {

/// CPython's random.Random for an integer seed, draw for draw (contracts.md 4.4): few-shot prompts are equal to
/// lm-evaluation-harness's only when its draws are. MT19937, seeded with init_by_array of the seed's 32-bit words.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint64_t seed);
  std::uint32_t next_word();
  /// getrandbits(bits), 0 < bits <= 64.
  std::uint64_t bits(int num_bits);
  /// random(): in [0, 1), 53 bits.
  double uniform();
  /// Uniform in [0, n), n > 0.
  std::uint64_t below(std::uint64_t n);
  /// sample(range(n), k), k <= n.
  std::vector<std::size_t> sample(std::size_t n, std::size_t k);
  /// choices(range(n), k=count).
  std::vector<std::size_t> choices(std::size_t n, std::size_t count);
  /// sum(choices(values, k=len(values))) from left to right, many times faster than drawing one by one.
  double sum_of_choices(std::span<const double> values);
  /// shuffle(list(range(n))).
  std::vector<std::size_t> shuffled(std::size_t n);

 private:
  void twist();
  static constexpr std::size_t kStateSize = 624;
  std::array<std::uint32_t, kStateSize> state_;
  std::size_t position_ = kStateSize;
};

}  // namespace dagmoe
