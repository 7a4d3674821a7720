#include "eval/text_template.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/text.h"

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
    const std::string path(trim(text.substr(open + kOpen.size(), close - open - kOpen.size())));
    if (!is_path(path)) {
      throw ConfigError(
          str("'{{", path, "}}' is no field; found an expression, expected a dotted path such as choices.*.text"));
    }
    pieces_.push_back({path, /*is_field=*/true});
    text.remove_prefix(close + kClose.size());
  }
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
    text += scalar_text(*values.front(), piece.text);
  }
  return text;
}

std::vector<std::string> TextTemplate::render_list(const Json& document) const {
  if (pieces_.size() != 1 || !pieces_.front().is_field) return {render(document)};
  const std::string& path = pieces_.front().text;
  std::vector<std::string> texts;
  for (const Json* value : resolve(document, path)) {
    if (!value->is_array()) {
      texts.push_back(scalar_text(*value, path));
      continue;
    }
    for (const Json& item : *value) texts.push_back(scalar_text(item, path));
  }
  return texts;
}

}  // namespace dagmoe
