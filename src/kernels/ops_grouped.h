#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// Products with one matrix per expert, in pieces of rows. The ops*.cpp files share it; nobody else includes it.

namespace dagmoe::ops {

/// oneDNN, which multiplies bfloat16 on the CPU, builds a program for every shape it has not seen: 0.8 ms for a product
/// that takes 1.2 ms. Routing gives new shapes in every step, so the number of rows is rounded up to a multiple of
/// this.
inline constexpr std::int64_t kRowMultiple = 32;
constexpr std::int64_t padded_rows(std::int64_t count) {
  return (count + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
}
/// Rows [first, first + count), all of one expert.
struct ExpertRows {
  std::size_t expert;
  std::int64_t first, count;
};

/// The rows of every expert that has any, in pieces of about `most` rows. The pieces depend on the counts alone, so
/// that results do not depend on the number of threads.
inline std::vector<ExpertRows> expert_rows(const std::vector<std::int64_t>& counts_E, std::int64_t most) {
  std::vector<ExpertRows> pieces;
  std::int64_t first = 0;
  for (std::size_t expert = 0; expert < counts_E.size(); ++expert) {
    const std::int64_t end = first + counts_E[expert], num_pieces = (counts_E[expert] + most - 1) / most;
    const std::int64_t size = num_pieces == 0 ? 0 : padded_rows((counts_E[expert] + num_pieces - 1) / num_pieces);
    for (; first < end; first += size) pieces.push_back({expert, first, std::min(size, end - first)});
    first = end;
  }
  return pieces;
}

}  // namespace dagmoe::ops
