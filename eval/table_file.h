#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "eval/record_problems.h"

namespace dagmoe {

/// One row of a table of texts and the line it begins in.
struct TableRow {
  std::vector<std::string> cells;
  std::int64_t line = 0;
};

/// Comma-separated values as Python's csv reads them (RFC 4180): a cell in double quotes may hold commas, line feeds
/// and, doubled, quotes. A quote that is never closed is a problem. Empty lines are left out.
std::vector<TableRow> parse_csv(std::string_view text, RecordProblems& problems);
/// Tab-separated values: no quoting, one row a line.
std::vector<TableRow> parse_tsv(std::string_view text);

}  // namespace dagmoe
