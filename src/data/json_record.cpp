#include "data/json_record.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

namespace ondemand = simdjson::ondemand;

static_assert(RecordParser::kPadding >= simdjson::SIMDJSON_PADDING);
// Deeper nesting than any data set has; keeps the recursion of check_value off the end of the stack.
constexpr int kMaxDepth = 256;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// What a JSON value is by its first character; nothing for a character that begins none.
std::optional<FieldKind> kind_of(char first) {
  switch (first) {
    case '"':
      return FieldKind::kString;
    case '{':
      return FieldKind::kObject;
    case '[':
      return FieldKind::kArray;
    case 't':
    case 'f':
      return FieldKind::kBoolean;
    case 'n':
      return FieldKind::kNull;
    default:
      break;
  }
  if (first == '-' || is_digit(first)) return FieldKind::kNumber;
  return std::nullopt;
}

// RFC 8259's grammar. simdjson's own check also refuses integers of more than 64 bits, which are good JSON.
bool is_number(std::string_view text) {
  std::size_t i = 0;
  const auto digits = [&] {
    const std::size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i > begin;
  };
  if (i < text.size() && text[i] == '-') ++i;
  if (i < text.size() && text[i] == '0') {
    ++i;
  } else if (!digits()) {
    return false;
  }
  if (i < text.size() && text[i] == '.') {
    ++i;
    if (!digits()) return false;
  }
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (!digits()) return false;
  }
  return i == text.size();
}

simdjson::error_code check_scalar(std::string_view token, FieldKind kind) {
  switch (kind) {
    case FieldKind::kNumber:
      return is_number(token) ? simdjson::SUCCESS : simdjson::NUMBER_ERROR;
    case FieldKind::kBoolean:
      return token == "true" || token == "false" ? simdjson::SUCCESS : simdjson::T_ATOM_ERROR;
    default:
      return token == "null" ? simdjson::SUCCESS : simdjson::N_ATOM_ERROR;
  }
}

// simdjson's on-demand parser checks what is looked at and nothing else, so a nested value is walked in full.
simdjson::error_code check_value(ondemand::value value, int depth) {
  if (depth > kMaxDepth) return simdjson::DEPTH_ERROR;
  const std::string_view token = strip_json_space(value.raw_json_token());
  const std::optional<FieldKind> kind = kind_of(token.front());
  if (!kind) return simdjson::TAPE_ERROR;
  if (*kind == FieldKind::kString) return value.get_string().error();
  if (*kind == FieldKind::kArray) {
    ondemand::array array;
    if (const auto error = value.get_array().get(array)) return error;
    for (auto element : array) {
      ondemand::value inner;
      if (const auto error = element.get(inner)) return error;
      if (const auto error = check_value(inner, depth + 1)) return error;
    }
    return simdjson::SUCCESS;
  }
  if (*kind == FieldKind::kObject) {
    ondemand::object object;
    if (const auto error = value.get_object().get(object)) return error;
    for (auto result : object) {
      ondemand::field field;
      if (const auto error = std::move(result).get(field)) return error;
      if (const auto error = field.unescaped_key().error()) return error;
      if (const auto error = check_value(field.value(), depth + 1)) return error;
    }
    return simdjson::SUCCESS;
  }
  return check_scalar(token, *kind);
}

}  // namespace

bool is_json_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

std::string_view strip_json_space(std::string_view text) {
  while (!text.empty() && is_json_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string shown_char(char c) {
  const auto value = static_cast<unsigned char>(c);
  if (value > 0x20 && value < 0x7F) return str("'", c, "'");
  constexpr std::string_view kDigits = "0123456789abcdef";
  return str("byte 0x", kDigits[value >> 4], kDigits[value & 15]);
}

std::string_view kind_text(FieldKind kind) {
  switch (kind) {
    case FieldKind::kString:
      return "a string";
    case FieldKind::kNumber:
      return "a number";
    case FieldKind::kBoolean:
      return "a boolean";
    case FieldKind::kNull:
      return "null";
    case FieldKind::kObject:
      return "an object";
    case FieldKind::kArray:
      return "an array";
  }
  throw InternalError("kind_text: unknown kind");
}

const RawField* RawRecord::find(std::string_view name) const {
  const auto found =
      std::find_if(fields.begin(), fields.end(), [&](const RawField& field) { return field.name == name; });
  return found == fields.end() ? nullptr : &*found;
}

struct RecordParser::Impl {
  ondemand::parser parser;
  std::vector<std::string_view> names;  // of one record; a member to keep its memory
  std::string parse_fields(ondemand::document& document, RawRecord& record);
};

RecordParser::RecordParser() : impl_(std::make_unique<Impl>()) {}
RecordParser::~RecordParser() = default;

std::string RecordParser::parse(std::string_view piece, bool in_array, RawRecord& record) {
  record.fields.clear();
  if (piece.front() != '{') {
    const std::optional<FieldKind> kind = kind_of(piece.front());
    if (!kind) return str("broken JSON: found ", shown_char(piece.front()), ", expected an object");
    const bool may_be_array = !in_array && *kind == FieldKind::kArray;
    return str("found ", kind_text(*kind), ", expected an object",
               may_be_array ? "; name the file .json if all of it is one array" : "");
  }
  const simdjson::padded_string_view view(piece.data(), piece.size(), piece.size() + kPadding);
  ondemand::document document;
  const auto error = impl_->parser.iterate(view).get(document);
  switch (error) {
    case simdjson::SUCCESS:
      return impl_->parse_fields(document, record);
    case simdjson::UTF8_ERROR:
      return "invalid UTF-8";
    case simdjson::UNCLOSED_STRING:
      return "broken JSON: a string is not closed";
    case simdjson::UNESCAPED_CHARS:
      return "broken JSON: a control character in a string is not escaped";
    default:
      return str("broken JSON: ", simdjson::error_message(error));
  }
}

std::string RecordParser::Impl::parse_fields(ondemand::document& document, RawRecord& record) {
  const char* begin = document.current_location().value_unsafe();
  const auto broken = [&](simdjson::error_code error) -> std::string {
    const char* place = begin;
    const bool known = document.current_location().get(place) == simdjson::SUCCESS;
    const std::string where = known ? str(" near byte ", place - begin + 1, " of the record") : "";
    switch (error) {
      case simdjson::STRING_ERROR:
        return str("broken JSON: bad escape in a string", where);
      case simdjson::NUMBER_ERROR:
        return str("broken JSON: bad number", where);
      case simdjson::DEPTH_ERROR:
        return str("nested more than ", kMaxDepth, " levels deep");
      case simdjson::INCOMPLETE_ARRAY_OR_OBJECT:
        return "broken JSON: the record has no end; is the line complete?";
      default:
        return str("broken JSON", where);
    }
  };
  ondemand::object object;
  if (const auto error = document.get_object().get(object)) return broken(error);
  for (auto result : object) {
    ondemand::field field;
    if (const auto error = std::move(result).get(field)) return broken(error);
    std::string_view name;
    if (const auto error = field.unescaped_key().get(name)) return broken(error);
    RawField& read = record.fields.emplace_back();
    read.name = name;
    ondemand::value value = field.value();
    const std::string_view token = strip_json_space(value.raw_json_token());
    const std::optional<FieldKind> kind = kind_of(token.front());
    if (!kind) return broken(simdjson::TAPE_ERROR);
    read.kind = *kind;
    if (*kind == FieldKind::kString) {
      std::string_view string;
      if (const auto error = value.get_string().get(string)) return broken(error);
      read.text = string;
      continue;
    }
    if (const auto error = check_value(value, 2)) return broken(error);
    if (*kind == FieldKind::kObject || *kind == FieldKind::kArray) {
      const char* end = nullptr;  // the ',' or '}' behind it
      if (document.current_location().get(end)) return broken(simdjson::INCOMPLETE_ARRAY_OR_OBJECT);
      read.text = strip_json_space({token.data(), static_cast<std::size_t>(end - token.data())});
    } else {
      read.text = token;
    }
  }
  const bool at_end = document.current_location().error() == simdjson::OUT_OF_BOUNDS;
  if (!at_end) return "text behind the end of the object; is a line break missing?";

  names.clear();
  for (const RawField& field : record.fields) names.push_back(field.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return str("field ", quoted_for_message(*twice), " is there twice");
  return "";
}

}  // namespace dagmoe
