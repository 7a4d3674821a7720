#include "eval/json_list.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::size_t kNone = std::string_view::npos;

// Behind the string that begins at `place`; kNone when it is never closed.
std::size_t string_end(std::string_view text, std::size_t place) {
  for (++place; place < text.size(); ++place) {
    if (text[place] == '\\') {
      ++place;
    } else if (text[place] == '"') {
      return place + 1;
    }
  }
  return kNone;
}

std::size_t skip_space(std::string_view text, std::size_t place) {
  while (place < text.size() && std::isspace(static_cast<unsigned char>(text[place])) != 0) ++place;
  return place;
}

// Behind the value that begins at `place`: at the comma or bracket that ends it, at the end of a broken text.
std::size_t value_end(std::string_view text, std::size_t place) {
  int depth = 0;
  while (place < text.size()) {
    const char c = text[place];
    if (c == '"') {
      place = string_end(text, place);
      if (place == kNone) return text.size();
      continue;
    }
    if (depth == 0 && (c == ',' || c == ']' || c == '}')) return place;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    ++place;
  }
  return place;
}

// Where the value of a member of the outermost object begins.
std::size_t member_value(std::string_view text, std::string_view field) {
  std::size_t place = skip_space(text, 0);
  if (place >= text.size() || text[place] != '{') return kNone;
  for (++place; place < text.size();) {
    place = skip_space(text, place);
    if (place >= text.size() || text[place] != '"') return kNone;
    const std::size_t end = string_end(text, place);
    if (end == kNone) return kNone;
    const std::string_view name = text.substr(place + 1, end - place - 2);
    place = skip_space(text, end);
    if (place >= text.size() || text[place] != ':') return kNone;
    place = skip_space(text, place + 1);
    if (name == field) return place;
    place = value_end(text, place);
    if (place >= text.size() || text[place] != ',') return kNone;
    ++place;
  }
  return kNone;
}

}  // namespace

std::vector<JsonItem> json_list_items(std::string_view text, std::string_view field, const std::string& where) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::size_t place = member_value(text, field);
  if (place >= text.size() || text[place] != '[')
    throw InputError(str(where, ":1: expected an object with a list '", field, "'"));
  std::vector<JsonItem> items;
  std::size_t counted = 0;
  std::int64_t line = 1;
  for (++place; place < text.size();) {
    place = skip_space(text, place);
    if (place < text.size() && text[place] == ']' && items.empty()) return items;
    line += std::count(text.begin() + counted, text.begin() + place, '\n');
    counted = place;
    const std::size_t end = value_end(text, place);
    items.push_back({text.substr(place, end - place), line});
    if (end < text.size() && text[end] == ']') return items;
    place = end + 1;
  }
  throw InputError(str(where, ":", line, ": the list '", field, "' is never closed"));
}

}  // namespace dagmoe
