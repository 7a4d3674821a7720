#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dagmoe {

/// Queries [first_query, end_query) of one segment and one key head. Keys before first_key are out of their sight.
struct AttentionTask {
  std::int64_t group, segment_begin, kv_head, first_query, end_query, first_key;
  std::int64_t num_keys() const { return end_query - first_key; }
};

/// The tasks of one segment and one key head: they are neighbours, and their gradients of keys and values add up.
struct AttentionGroup {
  std::size_t first_task, num_tasks;
  std::int64_t segment_begin, segment_size, kv_head;
};

struct AttentionPlan {
  std::vector<AttentionTask> tasks;
  std::vector<AttentionGroup> groups;
  std::vector<std::size_t> order;  ///< of the tasks, the dearest first
};

/// The work of attention inside each segment [offsets[s], offsets[s+1]), window 0: none. A long segment becomes a few
/// tasks of about the same cost, by its size alone, so that results do not depend on the number of threads.
AttentionPlan plan_attention(const std::vector<std::int64_t>& offsets, std::int64_t num_kv_heads, std::int64_t window);

}  // namespace dagmoe
