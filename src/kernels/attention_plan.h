#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/segments.h"

namespace dagmoe {

/// Where the positions of a sequence lie: the first `prefix_size` in rows from prefix_begin on, which other sequences
/// may share, the others in rows of its own.
struct SequencePlace {
  std::int64_t begin, size;  ///< its own rows
  std::int64_t prefix_begin = 0, prefix_size = 0;
  std::int64_t end_position() const { return prefix_size + size; }
  /// The row of one of its own positions, prefix_size or more.
  std::int64_t own_row(std::int64_t position) const { return begin + position - prefix_size; }
};

/// Queries at positions [first_query, end_query) of one sequence, its own, and one key head. Keys before first_key are
/// out of their sight.
struct AttentionTask {
  std::int64_t group;
  SequencePlace place;
  std::int64_t kv_head, first_query, end_query, first_key;
  std::int64_t num_keys() const { return end_query - first_key; }
};

/// The tasks of one sequence and one key head: they are neighbours, and their gradients of keys and values add up.
struct AttentionGroup {
  std::size_t first_task, num_tasks;
  SequencePlace place;
  std::int64_t kv_head;
  /// The groups that go on from this one add to its gradients, too: they are numbers of groups.
  std::vector<std::size_t> followers = {};
  bool is_follower() const { return place.prefix_size > 0; }
};

struct AttentionPlan {
  std::vector<AttentionTask> tasks;
  std::vector<AttentionGroup> groups;
  std::vector<std::size_t> order;  ///< of the tasks, the dearest first
};

/// The work of attention inside each segment [offsets[s], offsets[s+1]) and what it goes on from (Segments in ops.h),
/// window 0: none. A long segment becomes a few tasks of about the same cost, by its size alone, so that results do not
/// depend on the number of threads.
AttentionPlan plan_attention(const Segments& segments, std::int64_t num_kv_heads, std::int64_t window);

}  // namespace dagmoe
