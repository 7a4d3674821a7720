#pragma once

#include <string>
#include <vector>

namespace dagmoe {

struct TableColumn {
  std::string header;
  bool align_right = false;
};

/// A Markdown table as lm-evaluation-harness's writer draws it.
std::string markdown_table(const std::vector<TableColumn>& columns, const std::vector<std::vector<std::string>>& rows);

}  // namespace dagmoe
