#include "eval/group_scores.h"

#include <algorithm>
#include <set>

namespace dagmoe {
namespace {

// The results of the tasks below a group, each once.
void collect(const TaskGroup& group, std::span<const TaskGroup> groups, std::span<const TaskResult> results,
             std::vector<const TaskResult*>& found) {
  for (const std::string& name : group.tasks) {
    for (const TaskResult& result : results) {
      if (result.task.task == name && std::find(found.begin(), found.end(), &result) == found.end())
        found.push_back(&result);
    }
    for (const TaskGroup& inner : groups) {
      if (inner.group == name) collect(inner, groups, results, found);
    }
  }
}

const MetricResult* metric_of(const TaskResult& result, std::string_view metric, std::string_view filter) {
  const auto found = std::find_if(result.metrics.begin(), result.metrics.end(), [&](const MetricResult& candidate) {
    return candidate.name == metric && candidate.filter == filter;
  });
  return found == result.metrics.end() ? nullptr : &*found;
}

GroupResult score_group(const TaskGroup& group, std::span<const TaskGroup> groups,
                        std::span<const TaskResult> results) {
  std::vector<const TaskResult*> tasks;
  collect(group, groups, results, tasks);
  GroupResult score{.group = group, .metrics = {}, .num_documents = 0, .num_fewshot = {}};
  std::set<std::string> filters;
  std::set<std::int64_t> shots;
  for (const TaskResult* task : tasks) {
    score.num_documents += task->num_documents;
    shots.insert(task->num_fewshot);
    for (const MetricResult& metric : task->metrics) filters.insert(metric.filter);
  }
  if (shots.size() == 1) score.num_fewshot = *shots.begin();
  for (const Metric metric : group.metrics) {
    const std::string name(metric_name(metric));
    for (const std::string& filter : filters) {
      std::vector<Aggregate> values;
      std::vector<std::int64_t> sizes;
      for (const TaskResult* task : tasks) {
        const MetricResult* found = metric_of(*task, name, filter);
        if (found == nullptr) continue;
        values.push_back({found->value, found->standard_error});
        sizes.push_back(task->num_documents);
      }
      if (values.empty()) continue;
      const Aggregate sum = aggregate_tasks(values, sizes, group.weight_by_size);
      score.metrics.push_back({name, sum.value, sum.standard_error, is_higher_better(metric), filter});
    }
  }
  return score;
}

}  // namespace

std::vector<GroupResult> group_scores(std::span<const TaskGroup> groups, std::span<const TaskResult> results) {
  std::vector<GroupResult> scores;
  for (const TaskGroup& group : groups) scores.push_back(score_group(group, groups, results));
  return scores;
}

}  // namespace dagmoe
