#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/evaluate.h"
#include "eval/task_catalog.h"

namespace dagmoe {

/// A group's scores over the tasks in it, however deep they lie.
struct GroupResult {
  TaskGroup group;
  std::vector<MetricResult> metrics;
  std::int64_t num_documents = 0;
  std::optional<std::int64_t> num_fewshot;  ///< when all its tasks have the same
};

/// One for each group, in their order.
std::vector<GroupResult> group_scores(std::span<const TaskGroup> groups, std::span<const TaskResult> results);

}  // namespace dagmoe
