#include "eval/preprocess.h"

#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {
namespace {

const Json& field(const Json& record, const char* name) {
  const auto found = record.find(name);
  if (found == record.end()) throw InputError(str("field '", name, "' is missing"));
  return *found;
}

std::string text_field(const Json& record, const char* name) {
  const Json& value = field(record, name);
  if (!value.is_string()) throw InputError(str("field '", name, "': found ", value.type_name(), ", expected a text"));
  return value.get<std::string>();
}

// {"id", "question": {"stem", "choices": [{"text", "label"}]}, "answerKey"} to
// {"id", "question", "choices": {"text": [], "label": []}, "answerKey"}.
Json arc_record(const Json& record) {
  if (field(record, "question").is_string()) return record;
  Json result = Json::object();
  for (const auto& [name, value] : record.items()) {
    if (name != "question") {
      result[name] = value;
      continue;
    }
    if (!value.is_object())
      throw InputError(str("field 'question': found ", value.type_name(), ", expected an object or a text"));
    const Json& choices = field(value, "choices");
    if (!choices.is_array())
      throw InputError(str("field 'question.choices': found ", choices.type_name(), ", expected a list"));
    Json texts = Json::array(), labels = Json::array();
    for (const Json& choice : choices) {
      if (!choice.is_object())
        throw InputError(
            str("field 'question.choices': found an item that is ", choice.type_name(), ", expected an object"));
      texts.push_back(text_field(choice, "text"));
      labels.push_back(text_field(choice, "label"));
    }
    result["question"] = text_field(value, "stem");
    result["choices"] = {{"text", std::move(texts)}, {"label", std::move(labels)}};
  }
  return result;
}

Json hellaswag_record(Json record) {
  const std::string context = text_field(record, "ctx_a") + " " + python_capitalize(text_field(record, "ctx_b"));
  record["query"] = hellaswag_clean(text_field(record, "activity_label") + ": " + context);
  const Json& endings = field(record, "endings");
  if (!endings.is_array()) throw InputError(str("field 'endings': found ", endings.type_name(), ", expected a list"));
  Json choices = Json::array();
  for (const Json& ending : endings) {
    if (!ending.is_string())
      throw InputError(str("field 'endings': found an item that is ", ending.type_name(), ", expected a text"));
    choices.push_back(hellaswag_clean(ending.get<std::string>()));
  }
  record["choices"] = std::move(choices);
  // Upstream's labels are numbers, Hugging Face's are texts of numbers.
  const Json label = field(record, "label");
  const std::string text = label.is_string() ? label.get<std::string>() : label.dump();
  std::int64_t gold = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), gold);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) {
    throw InputError(str("field 'label': found ", label.dump(), ", expected the index of an ending"));
  }
  record["gold"] = gold;
  return record;
}

// re.sub(r"\[.*?\]", "", text): a bracket is closed on its own line or stays.
std::string without_brackets(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') {
      const std::size_t end = text.find_first_of("]\n", i);
      if (end != std::string_view::npos && text[end] == ']') {
        i = end;
        continue;
      }
    }
    result += text[i];
  }
  return result;
}

bool in_range(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

// Simple lower case of ASCII, Latin-1, Latin Extended-A, Greek and Cyrillic letters.
char32_t lower(char32_t c) {
  if (in_range(c, U'A', U'Z') || (in_range(c, 0xC0, 0xDE) && c != 0xD7)) return c + 0x20;
  if (c == 0x178) return 0xFF;
  const bool even_is_upper = (in_range(c, 0x100, 0x137) && c != 0x130) || in_range(c, 0x14A, 0x177);
  const bool odd_is_upper = in_range(c, 0x139, 0x148) || in_range(c, 0x179, 0x17E);
  if ((even_is_upper && c % 2 == 0) || (odd_is_upper && c % 2 == 1)) return c + 1;
  if ((in_range(c, 0x391, 0x3A9) && c != 0x3A2) || in_range(c, 0x410, 0x42F)) return c + 0x20;
  if (in_range(c, 0x400, 0x40F)) return c + 0x50;
  return c;
}

char32_t upper(char32_t c) {
  for (const char32_t candidate : std::initializer_list<char32_t>{c - 0x20, c - 1, c - 0x50, 0x178}) {
    if (candidate != c && lower(candidate) == c) return candidate;
  }
  return c;
}

constexpr char32_t kSharpS = 0xDF;

}  // namespace

Json preprocess_record(Preprocess kind, Json record) {
  switch (kind) {
    case Preprocess::kNone:
      return record;
    case Preprocess::kArc:
      return arc_record(record);
    case Preprocess::kHellaswag:
      return hellaswag_record(std::move(record));
  }
  throw InternalError("preprocess_record: unknown kind");
}

std::string hellaswag_clean(std::string_view text) {
  std::string cleaned(python_strip(text));
  replace_all(cleaned, " [title]", ". ");
  cleaned = without_brackets(cleaned);
  replace_all(cleaned, "  ", " ");
  return cleaned;
}

bool is_python_space(char32_t c) {
  return in_range(c, 0x09, 0x0D) || in_range(c, 0x1C, 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         in_range(c, 0x2000, 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view python_strip(std::string_view text) {
  text.remove_suffix(trailing_space_bytes(text));
  while (!text.empty()) {
    const Utf8Char first = decode_utf8(text, 0);
    if (!is_python_space(first.value)) break;
    text.remove_prefix(first.length);
  }
  return text;
}

std::size_t trailing_space_bytes(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t begin = end - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0u) == 0x80u) --begin;
    const Utf8Char last = decode_utf8(text.substr(0, end), begin);
    if (begin + last.length != end || !is_python_space(last.value)) break;
    end = begin;
  }
  return text.size() - end;
}

std::string python_capitalize(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const auto [value, length] = decode_utf8(text, i);
    if (i == 0 && value == kSharpS) {
      result += "Ss";
    } else if (value == kInvalidCodePoint) {
      result += text.substr(i, length);
    } else {
      append_utf8(result, i == 0 ? upper(lower(value)) : lower(value));
    }
    i += length;
  }
  return result;
}

}  // namespace dagmoe
