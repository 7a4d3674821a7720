#include "data/json_lines.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace dagmoe {
namespace {

namespace ondemand = simdjson::ondemand;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::size_t kExcerptBytes = 200;
// Deeper nesting than any data set has; keeps the recursion of check_value off the end of the stack.
constexpr int kMaxDepth = 256;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::int64_t count_lines(std::string_view text) { return std::count(text.begin(), text.end(), '\n'); }

std::string_view strip(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// A character for a message: 'x', or its value when it would not print.
std::string shown(char c) {
  const auto value = static_cast<unsigned char>(c);
  if (value > 0x20 && value < 0x7F) return str("'", c, "'");
  constexpr std::string_view kDigits = "0123456789abcdef";
  return str("byte 0x", kDigits[value >> 4], kDigits[value & 15]);
}

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
  const std::string_view token = strip(value.raw_json_token());
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

// The end of one value of an array, by its brackets and quotes alone; what is inside them is for the parser to judge.
struct ValueEnd {
  std::size_t end = 0;
  std::string reason;  // why there is no end
};
ValueEnd find_value_end(std::string_view text, std::size_t begin) {
  std::string open;  // the brackets that wait for their partner
  std::size_t i = begin;
  while (i < text.size()) {
    const char c = text[i];
    if (open.empty() && (c == ',' || c == ']' || c == '}' || is_space(c))) return {i, ""};  // ends a bare scalar
    ++i;
    if (c == '"') {
      while (i < text.size() && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
      ++i;
      if (open.empty() && i <= text.size()) return {i, ""};
    } else if (c == '{' || c == '[') {
      open.push_back(c);
    } else if (c == '}' || c == ']') {
      if ((open.back() == '{') != (c == '}')) return {i, str("broken JSON: '", c, "' closes a '", open.back(), "'")};
      open.pop_back();
      if (open.empty()) return {i, ""};
    }
  }
  return {text.size(), "broken array: the file ends inside a record; is it complete?"};
}

}  // namespace

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

struct RecordReader::Impl {
  std::shared_ptr<const MappedFile> file;
  std::string_view text;
  bool is_array = false;
  std::size_t offset = 0;
  std::int64_t line = 1;
  std::unique_ptr<BadRecord> pending;  // what broke between two records of an array; next() reports it
  ondemand::parser parser;
  std::string padded;                   // a copy of the last record, when the file ends too soon behind it
  std::vector<std::string_view> names;  // of one record; a member to keep its memory

  void begin();
  bool next_line(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  bool next_element(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  void skip_space();
  void break_off(const std::string& reason);
  void to_next_element();
  void read(std::string_view piece, std::int64_t piece_line, RawRecord& record, std::unique_ptr<BadRecord>& bad);
  std::string parse(std::string_view piece, RawRecord& record);
  std::string parse_fields(ondemand::document& document, RawRecord& record);
  simdjson::padded_string_view with_padding(std::string_view piece);
};

// To the first record.
void RecordReader::Impl::begin() {
  pending.reset();
  offset = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
  line = 1;
  if (!is_array) return;
  skip_space();
  if (offset == text.size() || text[offset] != '[') {
    const std::string found = offset == text.size() ? "nothing" : shown(text[offset]);
    throw InputError(
        str(file->path().string(), ":", line, ": found ", found,
            ", expected '[': a .json file is one array of objects; name it .jsonl if each line is an object"));
  }
  ++offset;
  skip_space();
  if (offset == text.size()) return break_off("broken array: the file ends without ']'");
  if (text[offset] == ']') to_next_element();
}

void RecordReader::Impl::skip_space() {
  while (offset < text.size() && is_space(text[offset])) line += text[offset++] == '\n';
}

// Nothing behind this place can be read.
void RecordReader::Impl::break_off(const std::string& reason) {
  pending = std::make_unique<BadRecord>(BadRecord{line, reason, std::string(text.substr(offset, kExcerptBytes))});
  offset = text.size();
}

// From behind one record to the first byte of the next, or to the end of the file.
void RecordReader::Impl::to_next_element() {
  skip_space();
  if (offset == text.size()) return break_off("broken array: the file ends without ']'");
  if (text[offset] == ']') {
    ++offset;
    skip_space();
    if (offset < text.size()) break_off(str("found ", shown(text[offset]), " behind the end of the array"));
    return;
  }
  if (text[offset] != ',') return break_off(str("broken array: found ", shown(text[offset]), ", expected ',' or ']'"));
  ++offset;
  skip_space();
  if (offset == text.size()) break_off("broken array: the file ends without ']'");
}

bool RecordReader::Impl::next_line(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  while (offset < text.size()) {
    const std::size_t end = std::min(text.find('\n', offset), text.size());
    const std::string_view piece = strip(text.substr(offset, end - offset));
    const std::int64_t piece_line = line;
    offset = std::min(end + 1, text.size());
    ++line;
    if (piece.empty()) continue;
    read(piece, piece_line, record, bad);
    return true;
  }
  return false;
}

bool RecordReader::Impl::next_element(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  if (pending) {
    bad = std::move(pending);
    return true;
  }
  if (offset == text.size()) return false;
  const ValueEnd value = find_value_end(text, offset);
  std::string broken = value.reason;
  if (value.end == offset) broken = str("broken array: found ", shown(text[offset]), ", expected an object");
  if (!broken.empty()) {
    break_off(broken);
    bad = std::move(pending);
    return true;
  }
  const std::string_view piece = text.substr(offset, value.end - offset);
  const std::int64_t piece_line = line;
  offset = value.end;
  line += count_lines(piece);
  to_next_element();
  read(piece, piece_line, record, bad);
  return true;
}

void RecordReader::Impl::read(std::string_view piece, std::int64_t piece_line, RawRecord& record,
                              std::unique_ptr<BadRecord>& bad) {
  record.fields.clear();
  record.line = piece_line;
  const std::string reason = parse(piece, record);
  if (reason.empty()) return;
  bad = std::make_unique<BadRecord>(BadRecord{piece_line, reason, std::string(piece.substr(0, kExcerptBytes))});
}

// simdjson reads, without using it, up to 64 bytes behind the text. Inside the mapping that is just the next record.
simdjson::padded_string_view RecordReader::Impl::with_padding(std::string_view piece) {
  const std::size_t behind = static_cast<std::size_t>(text.data() + text.size() - (piece.data() + piece.size()));
  if (behind >= simdjson::SIMDJSON_PADDING)
    return simdjson::padded_string_view(piece.data(), piece.size(), piece.size() + behind);
  padded.assign(piece);
  padded.append(simdjson::SIMDJSON_PADDING, ' ');
  return simdjson::padded_string_view(padded.data(), piece.size(), padded.size());
}

// Returns the reason for a record that is bad, "" for a good one.
std::string RecordReader::Impl::parse(std::string_view piece, RawRecord& record) {
  if (piece.front() != '{') {
    const std::optional<FieldKind> kind = kind_of(piece.front());
    if (!kind) return str("broken JSON: found ", shown(piece.front()), ", expected an object");
    const bool may_be_array = !is_array && *kind == FieldKind::kArray;
    return str("found ", kind_text(*kind), ", expected an object",
               may_be_array ? "; name the file .json if all of it is one array" : "");
  }
  const simdjson::padded_string_view view = with_padding(piece);
  ondemand::document document;
  const auto error = parser.iterate(view).get(document);
  switch (error) {
    case simdjson::SUCCESS:
      return parse_fields(document, record);
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

std::string RecordReader::Impl::parse_fields(ondemand::document& document, RawRecord& record) {
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
    const std::string_view token = strip(value.raw_json_token());
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
      read.text = strip({token.data(), static_cast<std::size_t>(end - token.data())});
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

RecordReader::RecordReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RecordReader::~RecordReader() = default;

std::unique_ptr<RecordReader> RecordReader::open(const std::filesystem::path& path) {
  auto impl = std::make_unique<Impl>();
  impl->file = MappedFile::open(path);
  impl->text = impl->file->text();
  impl->is_array = path.extension() == ".json";
  impl->begin();
  return std::unique_ptr<RecordReader>(new RecordReader(std::move(impl)));
}

bool RecordReader::next(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  bad.reset();
  return impl_->is_array ? impl_->next_element(record, bad) : impl_->next_line(record, bad);
}

void RecordReader::rewind() { impl_->begin(); }
std::uint64_t RecordReader::offset() const { return impl_->offset; }
std::int64_t RecordReader::line() const { return impl_->line; }

void RecordReader::seek(std::uint64_t offset, std::int64_t line) {
  impl_->pending.reset();
  impl_->offset = offset;
  impl_->line = line;
}

}  // namespace dagmoe
