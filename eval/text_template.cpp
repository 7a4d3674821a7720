#include "eval/text_template.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "eval/python_text.h"

namespace dagmoe {
namespace {

constexpr std::string_view kOpen = "{{", kClose = "}}";

bool is_path(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '*' || c == '-';
  });
}

// One step of a path from one value; `*` gives several.
void append_step(const Json& value, const std::string& step, std::vector<const Json*>& found) {
  if (value.is_array() && step == "*") {
    for (const Json& item : value) found.push_back(&item);
  } else if (value.is_array()) {
    std::size_t index = value.size();
    const auto [end, error] = std::from_chars(step.data(), step.data() + step.size(), index);
    if (error == std::errc() && end == step.data() + step.size() && index < value.size())
      found.push_back(&value[index]);
  } else if (value.is_object()) {
    const auto member = value.find(step);
    if (member != value.end()) found.push_back(&*member);
  }
}

std::vector<const Json*> resolve(const Json& document, const std::string& path) {
  std::vector<const Json*> values = {&document};
  for (const std::string& step : split(path, '.')) {
    std::vector<const Json*> next;
    for (const Json* value : values) append_step(*value, step, next);
    const bool lost_some = step != "*" && next.size() < values.size();
    if (next.empty() || lost_some) throw InputError(str("field '", path, "' is missing"));
    values = std::move(next);
  }
  return values;
}

// As Python's str() writes it.
std::string scalar_text(const Json& value, const std::string& path) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_number()) return value.dump();
  throw InputError(str("field '", path, "': found ",
                       value.is_null()    ? "null"
                       : value.is_array() ? "a list"
                                          : "an object",
                       ", expected a text or a number"));
}

}  // namespace

TextTemplate::TextTemplate(std::string_view text) {
  if (text.find("{%") != std::string_view::npos)
    throw ConfigError("'{%' begins a Jinja statement; templates only substitute {{field}}");
  while (!text.empty()) {
    const std::size_t open = text.find(kOpen);
    if (open != 0) pieces_.push_back({std::string(text.substr(0, open)), /*is_field=*/false});
    if (open == std::string_view::npos) return;
    const std::size_t close = text.find(kClose, open);
    if (close == std::string_view::npos) throw ConfigError("'{{' is never closed");
    const std::string_view inside = trim(text.substr(open + kOpen.size(), close - open - kOpen.size()));
    const std::size_t bar = inside.find('|');
    const std::string path(trim(inside.substr(0, bar)));
    const std::string filter(bar == std::string_view::npos ? "" : trim(inside.substr(bar + 1)));
    const std::map<std::string, Trim> filters = {
        {"", Trim::kNone}, {"strip", Trim::kBoth}, {"lstrip", Trim::kLeft}, {"rstrip", Trim::kRight}};
    const auto known = filters.find(filter);
    if (!is_path(path) || known == filters.end()) {
      throw ConfigError(str("'{{", inside,
                            "}}' is no field; found an expression, expected a dotted path such as choices.*.text, "
                            "perhaps with '| strip', '| lstrip' or '| rstrip'"));
    }
    pieces_.push_back({path, /*is_field=*/true, known->second});
    text.remove_prefix(close + kClose.size());
  }
}

bool TextTemplate::has_fields() const {
  return std::any_of(pieces_.begin(), pieces_.end(), [](const Piece& piece) { return piece.is_field; });
}

std::string TextTemplate::trimmed(std::string text, Trim trim) {
  std::string_view kept = text;
  if (trim == Trim::kBoth) kept = python_strip(kept);
  if (trim == Trim::kLeft) kept = python_lstrip(kept);
  if (trim == Trim::kRight) kept.remove_suffix(trailing_space_bytes(kept));
  return std::string(kept);
}

std::string TextTemplate::render(const Json& document) const {
  std::string text;
  for (const Piece& piece : pieces_) {
    if (!piece.is_field) {
      text += piece.text;
      continue;
    }
    const std::vector<const Json*> values = resolve(document, piece.text);
    if (values.size() > 1)
      throw InputError(str("field '", piece.text, "': found ", values.size(), " values, expected one"));
    text += trimmed(scalar_text(*values.front(), piece.text), piece.trim);
  }
  return text;
}

std::vector<std::string> TextTemplate::render_list(const Json& document) const {
  if (pieces_.size() != 1 || !pieces_.front().is_field) return {render(document)};
  const auto& [path, is_field, trim] = pieces_.front();
  std::vector<std::string> texts;
  for (const Json* value : resolve(document, path)) {
    if (!value->is_array()) {
      texts.push_back(trimmed(scalar_text(*value, path), trim));
      continue;
    }
    for (const Json& item : *value) texts.push_back(trimmed(scalar_text(item, path), trim));
  }
  return texts;
}

}  // namespace dagmoe
