#include "data/metaspace.h"

#include "base/error.h"
#include "base/text.h"
#include "data/tokenizer_json_parts.h"
#include "data/unicode.h"

namespace dagmoe {

std::string_view prefix_text(SpacePrefix prefix) {
  switch (prefix) {
    case SpacePrefix::kModel:
      return "as the model says";
    case SpacePrefix::kAlways:
      return "before every stretch";
    case SpacePrefix::kFirst:
      return "before the first stretch";
    case SpacePrefix::kNever:
      return "never";
  }
  throw InternalError("prefix_text: unknown rule");
}

namespace {

// A value of the file in a message: short, on one line.
std::string found_text(const Json& value) {
  return value.is_string() ? quoted_for_message(value.get<std::string>()) : value.type_name();
}

}  // namespace

SpacePrefix metaspace_prefix(const Json& metaspace, const std::string& where) {
  if (const Json* replacement = find_part(metaspace, "replacement");
      replacement != nullptr && *replacement != kSpaceSymbol) {
    throw InputError(
        str(where, ": Metaspace: replacement ", found_text(*replacement), " is not supported, only U+2581"));
  }
  const auto scheme = metaspace.find("prepend_scheme");
  if (scheme == metaspace.end()) {  // before tokenizers 0.15
    const auto prefix = metaspace.find("add_prefix_space");
    return prefix != metaspace.end() && *prefix == false ? SpacePrefix::kNever : SpacePrefix::kAlways;
  }
  if (*scheme == "always") return SpacePrefix::kAlways;
  if (*scheme == "first") return SpacePrefix::kFirst;
  if (*scheme == "never") return SpacePrefix::kNever;
  throw InputError(
      str(where, ": Metaspace: prepend_scheme ", found_text(*scheme), " is not known; known: always, first, never"));
}

std::string with_space_symbols(std::string_view text) {
  std::string result(text);
  replace_all(result, " ", kSpaceSymbol);
  return result;
}

void restore_spaces(std::string& text) { replace_all(text, kSpaceSymbol, " "); }

bool adds_space_prefix(SpacePrefix rule, std::string_view stretch, bool is_first) {
  if (rule == SpacePrefix::kModel) return true;
  const bool begins_with_space = stretch.starts_with(' ') || stretch.starts_with(kSpaceSymbol);
  return !begins_with_space && (rule == SpacePrefix::kAlways || (rule == SpacePrefix::kFirst && is_first));
}

MetaspaceSplitter::MetaspaceSplitter(const Json* pre_tokenizer, bool words_stand_alone, const std::string& where)
    : words_stand_alone_(words_stand_alone) {
  for_each_part(pre_tokenizer, "pretokenizers", [&](const Json& step) {
    const std::string type = json_string(step, "type", where);
    if (type != "Metaspace" || replaces_spaces_) {
      throw InputError(
          str(where, ": type ", quoted_for_message(type), " is not known here; known: one Metaspace, or none"));
    }
    prefix_ = metaspace_prefix(step, where);
    replaces_spaces_ = true;
    const Json* split = find_part(step, "split");
    splits_ = split == nullptr || *split != false;
  });
}

bool MetaspaceSplitter::adds_prefix(std::string_view stretch, bool is_first) const {
  return adds_space_prefix(prefix_, stretch, is_first);
}

void MetaspaceSplitter::split(std::string_view stretch, bool with_prefix, std::string& buffer, Pieces& pieces) const {
  buffer.assign(with_prefix ? kSpaceSymbol : std::string_view());
  if (replaces_spaces_) {
    for (const char c : stretch) c == ' ' ? buffer.append(kSpaceSymbol) : buffer.append(1, c);
  } else {
    buffer.append(stretch);
  }
  const std::string_view text = buffer;
  pieces.clear();
  std::size_t start = 0;
  const auto cut = [&](std::size_t end) {
    if (end > start) pieces.push_back(text.substr(start, end - start));
    start = end;
  };
  if (splits_ || words_stand_alone_) {
    for (std::size_t at = text.find(kSpaceSymbol); at != std::string_view::npos;
         at = text.find(kSpaceSymbol, at + kSpaceSymbol.size())) {
      // Without "split" only words part: a run of spaces may be one token.
      if (splits_ || !text.substr(0, at).ends_with(kSpaceSymbol)) cut(at);
    }
  }
  cut(text.size());
}

}  // namespace dagmoe
