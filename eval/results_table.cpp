#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "base/text.h"
#include "eval/markdown_table.h"
#include "eval/results.h"

namespace dagmoe {
namespace {

constexpr int kDecimals = 4;

/// A task or a group, as a row of the table shows it.
struct Entry {
  std::string name;
  std::optional<double> version;
  std::optional<std::int64_t> num_fewshot;
  std::vector<MetricResult> metrics;
};

std::string version_text(const std::optional<double>& version) {
  if (!version) return "N/A";
  return *version == std::floor(*version) ? std::to_string(static_cast<std::int64_t>(*version)) : str(*version);
}

void append_rows(const Entry& entry, std::size_t depth, std::vector<std::vector<std::string>>& rows) {
  std::vector<MetricResult> metrics = entry.metrics;
  std::stable_sort(metrics.begin(), metrics.end(), [](const MetricResult& a, const MetricResult& b) {
    return std::pair(a.name, a.filter) < std::pair(b.name, b.filter);
  });
  const std::string name = depth == 0 ? entry.name : std::string(depth, ' ') + "- " + entry.name;
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    rows.push_back({m == 0 ? name : "", m == 0 ? version_text(entry.version) : "", metrics[m].filter,
                    entry.num_fewshot ? std::to_string(*entry.num_fewshot) : " ", metrics[m].name,
                    metrics[m].higher_is_better ? "↑" : "↓", fixed(metrics[m].value, kDecimals), "±",
                    metrics[m].standard_error ? fixed(*metrics[m].standard_error, kDecimals) : "N/A"});
  }
}

std::string table_of(const std::string& first_header, const std::vector<std::vector<std::string>>& rows) {
  return markdown_table({{first_header},
                         {"Version", true},
                         {"Filter"},
                         {"n-shot", true},
                         {"Metric"},
                         {""},
                         {"Value", true},
                         {""},
                         {"Stderr", true}},
                        rows);
}

/// Walks groups from the outermost in, children by name, then the tasks that no group has.
class TableOrder {
 public:
  TableOrder(std::span<const TaskResult> results, std::span<const GroupResult> groups) {
    for (const TaskResult& result : results)
      entries_[result.task.task] = {result.task.shown_name(), result.task.version, result.num_fewshot, result.metrics};
    for (const GroupResult& group : groups) {
      entries_[group.group.group] = {group.group.shown_name(), group.group.version, group.num_fewshot, group.metrics};
      children_[group.group.group] = std::set<std::string>(group.group.tasks.begin(), group.group.tasks.end());
    }
  }

  template <class Visit>
  void walk(Visit visit) {
    std::set<std::string> inner;
    for (const auto& [group, children] : children_) inner.insert(children.begin(), children.end());
    for (const auto& [group, unused] : children_) {
      if (!inner.contains(group)) descend(group, 0, visit);
    }
    for (const auto& [name, entry] : entries_) {
      if (!seen_.contains(name)) visit(entry, 0, false);
    }
  }

 private:
  template <class Visit>
  void descend(const std::string& name, std::size_t depth, Visit& visit) {
    const auto entry = entries_.find(name);
    const auto children = children_.find(name);
    if (entry == entries_.end() || !seen_.insert(name).second) return;
    visit(entry->second, depth, children != children_.end());
    if (children == children_.end()) return;
    for (const std::string& child : children->second) descend(child, depth + 1, visit);
  }

  std::map<std::string, Entry> entries_;
  std::map<std::string, std::set<std::string>> children_;
  std::set<std::string> seen_;
};

}  // namespace

std::string results_table(std::span<const TaskResult> results, std::span<const GroupResult> groups) {
  std::vector<std::vector<std::string>> rows, group_rows;
  TableOrder(results, groups).walk([&](const Entry& entry, std::size_t depth, bool is_group) {
    append_rows(entry, depth, rows);
    if (is_group) append_rows(entry, depth, group_rows);
  });
  return table_of("Tasks", rows) + (groups.empty() ? "" : "\n" + table_of("Groups", group_rows));
}

}  // namespace dagmoe
