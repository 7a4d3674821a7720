#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace dagmoe {

/// Sequences back to back: segment s is rows [offsets[s], offsets[s+1]). Some may go on from another one, whose rows
/// stand before their own as if they were copied there: a beginning that several have in common lies there once.
///   offsets  0 ... 3 . 5 ... 8     positions 0 1 2 | 3 4 | 3 4 5
///   prefixes    -1   0     0       the sequences (0 1 2 3 4) and (0 1 2 5 6 7), and (0 1 2) alone
struct Segments {
  Segments() = default;
  Segments(std::initializer_list<std::int64_t> row_offsets) : offsets(row_offsets) {}
  Segments(std::vector<std::int64_t> row_offsets, std::vector<std::int64_t> prefix_numbers = {})
      : offsets(std::move(row_offsets)), prefixes(std::move(prefix_numbers)) {}
  std::vector<std::int64_t> offsets;
  /// The number of the segment that each goes on from, which comes before it and goes on from none; -1: none. Empty: no
  /// segment does.
  std::vector<std::int64_t> prefixes;

  std::size_t count() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  std::int64_t begin(std::size_t s) const { return offsets[s]; }
  std::int64_t size(std::size_t s) const { return offsets[s + 1] - offsets[s]; }
  std::int64_t prefix(std::size_t s) const { return prefixes.empty() ? -1 : prefixes[s]; }
  bool share_prefixes() const { return !prefixes.empty(); }
};

/// Throws InternalError, beginning with `what`, unless the segments cover `num_rows` rows and the prefixes are as
/// above.
void check_segments(const char* what, const Segments& segments, std::int64_t num_rows);

/// The rows of all sequences one after the other, those of a prefix once for itself and again for each that goes on
/// from it.
struct SpreadRows {
  std::vector<std::int64_t> rows;     ///< which row each is a copy of
  std::vector<std::int64_t> offsets;  ///< of the sequences among the copies
  std::vector<std::int64_t> own;      ///< for every row, its place among the copies where it is a segment's own
};
SpreadRows spread_rows(const Segments& segments);

}  // namespace dagmoe
