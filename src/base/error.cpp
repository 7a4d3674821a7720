#include "base/error.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <utility>

namespace dagmoe {
namespace {

std::string join_lines(const std::vector<std::string>& issues, const std::string& summary) {
  std::string text;
  for (const auto& issue : issues) text += (text.empty() ? "" : "\n") + issue;
  if (!summary.empty()) text += (text.empty() ? "" : "\n") + summary;
  return text;
}

// Edit distance that also counts a swap of neighbours as one edit, so that 'rnak' is near 'rank'. Case does not count.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  const auto same = [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) == std::tolower(static_cast<unsigned char>(y));
  };
  std::vector<std::vector<std::size_t>> cost(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      cost[i][j] =
          std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, cost[i - 1][j - 1] + (same(a[i - 1], b[j - 1]) ? 0u : 1u)});
      const bool swapped = i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]);
      if (swapped) cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

ConfigError::ConfigError(const std::string& message) : Error(ExitCode::kConfig, message), issues_{message} {}

ConfigError::ConfigError(std::vector<std::string> issues, const std::string& summary)
    : Error(ExitCode::kConfig, join_lines(issues, summary)), issues_(std::move(issues)) {}

std::vector<std::string> closest_names(std::string_view target, const std::vector<std::string>& known) {
  // A third of the letters may differ, and one even in short names; further apart a hint only confuses.
  const std::size_t limit = std::max<std::size_t>(1, target.size() / 3);
  std::vector<std::pair<std::size_t, std::string>> near;
  for (const auto& name : known) {
    // At least the difference of the lengths; a target of megabytes is not worth the table.
    const std::size_t shorter = std::min(target.size(), name.size()), longer = std::max(target.size(), name.size());
    if (longer - shorter > limit) continue;
    const std::size_t distance = edit_distance(target, name);
    if (distance <= limit) near.emplace_back(distance, name);
  }
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (const auto& [distance, name] : near) {
    if (names.size() < 3) names.push_back(name);
  }
  return names;
}

std::string did_you_mean(std::string_view target, const std::vector<std::string>& known) {
  if (known.empty()) return "";
  const auto near = closest_names(target, known);
  if (!near.empty()) return "; did you mean '" + near.front() + "'?";
  std::string list;
  for (const auto& name : known) list += (list.empty() ? "" : ", ") + name;
  return "; known: " + list;
}

}  // namespace dagmoe
