#include "eval/markdown_table.h"

#include <algorithm>
#include <string_view>

#include "base/text.h"

namespace dagmoe {
namespace {

std::string padded(std::string_view text, std::size_t width, bool align_right) {
  const std::string space(width - static_cast<std::size_t>(count_code_points(text)), ' ');
  return align_right ? space + std::string(text) : std::string(text) + space;
}

std::string centered(std::string_view text, std::size_t width) {
  const std::size_t space = width - text.size();
  return std::string(space / 2, ' ') + std::string(text) + std::string(space - space / 2, ' ');
}

}  // namespace

std::string markdown_table(const std::vector<TableColumn>& columns, const std::vector<std::vector<std::string>>& rows) {
  constexpr std::size_t kMinWidth = 3;
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    std::size_t width = std::max(kMinWidth, columns[c].header.size());
    for (const auto& row : rows) width = std::max(width, static_cast<std::size_t>(count_code_points(row[c])));
    widths.push_back(width);
  }
  std::string header = "|", rule = "|", body;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    header += centered(columns[c].header, widths[c]) + "|";
    rule += std::string(widths[c] - 1, '-') + (columns[c].align_right ? ":|" : "-|");
  }
  for (const auto& row : rows) {
    body += "|";
    for (std::size_t c = 0; c < columns.size(); ++c) body += padded(row[c], widths[c], columns[c].align_right) + "|";
    body += "\n";
  }
  return header + "\n" + rule + "\n" + body;
}

}  // namespace dagmoe
