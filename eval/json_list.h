#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// One item of a list in a JSON text, not yet parsed, and the line it begins in.
struct JsonItem {
  std::string_view text;
  std::int64_t line = 0;
};

/// The items of the list that `field` of a JSON object holds: cut at the commas, so that a broken item can be reported
/// with its line and the others be read. Throws InputError, which begins with `where`, when there is no such list.
std::vector<JsonItem> json_list_items(std::string_view text, std::string_view field, const std::string& where);

}  // namespace dagmoe
