#include "data/tokenizer_normalizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/tokenizer_json_parts.h"
#include "data/unicode.h"

namespace dagmoe {

Normalizer::Normalizer(const Json* normalizer, const std::string& where) {
  for_each_part(normalizer, "normalizers", [&](const Json& step) { add_step(step, where); });
}

void Normalizer::add_step(const Json& step, const std::string& where) {
  const std::string type = json_string(step, "type", where);
  if (type == "NFC") {
    steps_.push_back({.kind = Kind::kNfc, .from = {}, .to = {}});
  } else if (type == "Prepend") {
    steps_.push_back({.kind = Kind::kPrepend, .from = {}, .to = json_string(step, "prepend", where)});
  } else if (type == "Replace") {
    const Json* pattern = find_part(step, "pattern");
    if (pattern == nullptr || !pattern->contains("String")) {
      throw InputError(where + ": 'Replace' is known with a pattern 'String' only");
    }
    steps_.push_back({.kind = Kind::kReplace,
                      .from = json_string(*pattern, "String", where),
                      .to = json_string(step, "content", where)});
    if (steps_.back().from.empty()) throw InputError(where + ": 'Replace': the pattern is empty");
  } else {
    throw InputError(
        str(where, ": type ", quoted_for_message(type), " is not known; known: NFC, Prepend, Replace, or none"));
  }
}

std::string Normalizer::apply(std::string_view text, bool with_prefix) const {
  std::string result(text);
  for (const Step& step : steps_) {
    if (step.kind == Kind::kNfc) result = normalize_nfc(result);
    if (step.kind == Kind::kPrepend && with_prefix && !result.empty()) result.insert(0, step.to);
    if (step.kind == Kind::kReplace) replace_all(result, step.from, step.to);
  }
  return result;
}

bool Normalizer::has_prefix() const noexcept {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) { return step.kind == Kind::kPrepend; });
}

std::string Normalizer::description() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) { return step.kind == Kind::kNfc; }) ? "NFC, "
                                                                                                             : "";
}

}  // namespace dagmoe
