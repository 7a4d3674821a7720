#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace dagmoe {

/// Hands out ranges of cache rows, each without a gap: the first that is large enough.
class RowAllocator {
 public:
  explicit RowAllocator(std::int64_t first, std::int64_t last) {
    if (last > first) free_[first] = last - first;
  }
  std::optional<std::int64_t> allocate(std::int64_t count) {
    for (auto range = free_.begin(); range != free_.end(); ++range) {
      const auto [begin, size] = *range;
      if (size < count) continue;
      free_.erase(range);
      if (size > count) free_[begin + count] = size - count;
      return begin;
    }
    return std::nullopt;
  }
  /// `begin` and `count` as allocated.
  void release(std::int64_t begin, std::int64_t count) {
    auto range = free_.emplace(begin, count).first;
    const auto after = std::next(range);
    if (after != free_.end() && begin + count == after->first) {
      range->second += after->second;
      free_.erase(after);
    }
    if (range == free_.begin()) return;
    const auto before = std::prev(range);
    if (before->first + before->second == begin) {
      before->second += range->second;
      free_.erase(range);
    }
  }

 private:
  std::map<std::int64_t, std::int64_t> free_;  // begin -> count, never touching each other
};

}  // namespace dagmoe
