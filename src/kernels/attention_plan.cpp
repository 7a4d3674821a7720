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

AttentionPlan plan_attention(const std::vector<std::int64_t>& offsets, std::int64_t num_kv_heads, std::int64_t window) {
  AttentionPlan plan;
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const std::int64_t begin = offsets[s], size = offsets[s + 1] - begin;
    if (size == 0) continue;
    const std::vector<std::int64_t> bounds = task_bounds(size, window);
    for (std::int64_t head = 0; head < num_kv_heads; ++head) {
      plan.groups.push_back({plan.tasks.size(), bounds.size() - 1, begin, size, head});
      for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
        const std::int64_t first_key = window > 0 ? std::max<std::int64_t>(0, bounds[i] - window + 1) : 0;
        plan.tasks.push_back(
            {static_cast<std::int64_t>(plan.groups.size()) - 1, begin, head, bounds[i], bounds[i + 1], first_key});
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
