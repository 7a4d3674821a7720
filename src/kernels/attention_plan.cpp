#include "kernels/attention_plan.h"

#include <algorithm>
#include <cmath>

namespace dagmoe {
namespace {

// Scores of a task.
double cost(const AttentionTask& task, std::int64_t window) {
  const auto before = [window](std::int64_t position) {
    const auto x = static_cast<double>(position), w = static_cast<double>(window > 0 ? window : position);
    return x <= w ? x * x / 2 : w * w / 2 + (x - w) * w;
  };
  return before(task.end_query) - before(task.first_query);
}

// Few, because each of several tasks keeps the gradients of all keys it saw until they are added up.
std::vector<std::int64_t> task_bounds(std::int64_t segment_size, std::int64_t window) {
  constexpr std::int64_t kTaskQueries = 512, kMostTasks = 4;
  const std::int64_t num_tasks = std::min(segment_size / kTaskQueries, kMostTasks);
  std::vector<std::int64_t> bounds = {0};
  for (std::int64_t i = 1; i < num_tasks; ++i) {
    const double part = static_cast<double>(i) / static_cast<double>(num_tasks);
    const double place = window > 0 && window < segment_size / 2 ? part : std::sqrt(part);
    bounds.push_back(std::llround(place * static_cast<double>(segment_size)));
  }
  bounds.push_back(segment_size);
  return bounds;
}

}  // namespace

AttentionPlan plan_attention(const Segments& segments, std::int64_t num_kv_heads, std::int64_t window) {
  AttentionPlan plan;
  std::vector<std::size_t> first_groups(segments.count());
  for (std::size_t s = 0; s < segments.count(); ++s) {
    first_groups[s] = plan.groups.size();
    SequencePlace place = {segments.begin(s), segments.size(s)};
    if (place.size == 0) continue;
    const bool goes_on = segments.prefix(s) >= 0;
    const auto prefix = static_cast<std::size_t>(goes_on ? segments.prefix(s) : 0);
    if (goes_on) place.prefix_begin = segments.begin(prefix), place.prefix_size = segments.size(prefix);
    const std::vector<std::int64_t> bounds = task_bounds(place.size, window);
    for (std::int64_t head = 0; head < num_kv_heads; ++head) {
      const std::size_t group = plan.groups.size();
      if (place.prefix_size > 0)
        plan.groups[first_groups[prefix] + static_cast<std::size_t>(head)].followers.push_back(group);
      plan.groups.push_back({plan.tasks.size(), bounds.size() - 1, place, head});
      for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
        const std::int64_t first_query = place.prefix_size + bounds[i], end_query = place.prefix_size + bounds[i + 1];
        const std::int64_t first_key = window > 0 ? std::max<std::int64_t>(0, first_query - window + 1) : 0;
        plan.tasks.push_back({static_cast<std::int64_t>(group), place, head, first_query, end_query, first_key});
      }
    }
  }
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) plan.order.push_back(i);
  std::stable_sort(plan.order.begin(), plan.order.end(), [&](std::size_t a, std::size_t b) {
    return cost(plan.tasks[a], window) > cost(plan.tasks[b], window);
  });
  return plan;
}

}  // namespace dagmoe
