#include "data/byte_bpe_pre_tokenizer.h"

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

namespace {

/// Default false, as serde has it for a flag that is absent, unless `absent` says otherwise.
bool flag(const Json& object, std::string_view key, bool absent) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : absent;
}

}  // namespace

PreTokenizer::PreTokenizer(const Json& pre_tokenizer, const std::string& where, Route route) : route_(route) {
  if (!pre_tokenizer.is_object()) throw InputError(where + ": there is none; only byte-level tokenizers are known");
  add_step(pre_tokenizer, where);
  if (!has_byte_level_) throw InputError(where + ": has no step 'ByteLevel'; only byte-level tokenizers are known");
}

void PreTokenizer::add_step(const Json& step, const std::string& where) {
  const std::string type = json_string(step, "type", where);
  if (has_byte_level_)
    throw InputError(str(where, ": step ", quoted_for_message(type), " after 'ByteLevel' is not supported"));
  if (type == "Sequence") {
    const auto steps = step.find("pretokenizers");
    if (steps == step.end() || !steps->is_array()) throw InputError(where + ": 'pretokenizers' is missing");
    for (const Json& inner : *steps) add_step(inner, where);
  } else if (type == "Digits") {
    if (!flag(step, "individual_digits", false))
      throw InputError(where + ": 'Digits' is known with individual_digits only");
    steps_.push_back({.kind = Kind::kDigits, .name = "digits", .regex = std::nullopt});
  } else if (type == "ByteLevel") {
    if (flag(step, "add_prefix_space", true))
      throw InputError(where + ": 'ByteLevel' with add_prefix_space is not supported");
    if (flag(step, "use_regex", true)) add_regex(kGpt2Regex, where);
    has_byte_level_ = true;
  } else if (type == "Split") {
    add_split(step, where);
  } else {
    throw InputError(
        str(where, ": type ", quoted_for_message(type), " is not known; known: ByteLevel, Digits, Split, Sequence"));
  }
}

void PreTokenizer::add_split(const Json& step, const std::string& where) {
  if (const std::string behavior = json_string(step, "behavior", where);
      behavior != "Isolated" || flag(step, "invert", false)) {
    throw InputError(str(where, ": 'Split' is known with behavior 'Isolated' and without invert only, found ",
                         quoted_for_message(behavior)));
  }
  const auto pattern = step.find("pattern");
  if (pattern == step.end() || !pattern->is_object() || !pattern->contains("Regex")) {
    throw InputError(where + ": 'Split' is known with a pattern 'Regex' only");
  }
  add_regex(json_string(*pattern, "Regex", where), where);
}

void PreTokenizer::add_regex(std::string_view pattern, const std::string& where) {
  Step step{.kind = Kind::kRegex, .name = "regex", .regex = std::nullopt};
  if (pattern == kGpt2Regex) step = {.kind = Kind::kGpt2, .name = "gpt2", .regex = std::nullopt};
  if (pattern == kQwen2Regex) step = {.kind = Kind::kQwen2, .name = "qwen2", .regex = std::nullopt};
  if (pattern == kLlama3Regex) step = {.kind = Kind::kLlama3, .name = "llama3", .regex = std::nullopt};
  if (step.kind == Kind::kRegex || route_ == Route::kRegexOnly) {
    step.kind = Kind::kRegex;
    step.regex.emplace(pattern, where);
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::Step::split(std::string_view text, Pieces& pieces) const {
  switch (kind) {
    case Kind::kDigits:
      return split_digits(text, pieces);
    case Kind::kGpt2:
      return split_gpt2(text, pieces);
    case Kind::kQwen2:
      return split_qwen2(text, 1, pieces);
    case Kind::kLlama3:
      return split_qwen2(text, 3, pieces);
    case Kind::kRegex:
      return regex->split(text, pieces);
  }
}

void PreTokenizer::split(std::string_view text, Pieces& pieces) const {
  pieces.assign(text.empty() ? 0 : 1, text);
  Pieces next;
  for (const Step& step : steps_) {
    next.clear();
    for (const std::string_view piece : pieces) step.split(piece, next);
    pieces.swap(next);
  }
}

std::string PreTokenizer::description() const {
  std::vector<std::string> names;
  for (const Step& step : steps_) names.push_back(step.name);
  return names.empty() ? "none" : join(names, " + ");
}

}  // namespace dagmoe
