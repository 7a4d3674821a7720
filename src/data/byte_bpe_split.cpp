#include "data/byte_bpe_split.h"

#include "data/unicode.h"

namespace dagmoe {

namespace {

/// Walks over the characters of a text by their class, as a regex sees it.
class ClassReader {
 public:
  explicit ClassReader(std::string_view text) : text_(text), classes_(char_class_table().data()) {}

  /// Class of the character at `position`; sets `length` to its bytes.
  CharClass at(std::size_t position, std::size_t& length) const {
    const auto byte = static_cast<unsigned char>(text_[position]);
    if (byte < 0x80) {
      length = 1;
      return classes_[byte];
    }
    const Utf8Char c = decode_utf8(text_, position);
    length = c.length;
    const CharClass found = c.value == kInvalidCodePoint ? CharClass::kOther : classes_[c.value];
    return found == CharClass::kRecentNumber ? CharClass::kOther : found;
  }
  /// True for every number that the Digits step knows.
  bool is_digit(std::size_t position, std::size_t& length) const {
    const CharClass seen = at(position, length);
    return seen == CharClass::kNumber || (length == 4 && seen == CharClass::kOther &&
                                          classes_[decode_utf8(text_, position).value] == CharClass::kRecentNumber);
  }
  CharClass at(std::size_t position) const {
    std::size_t length = 0;
    return at(position, length);
  }
  /// True when there is a character at `position` and it has this class.
  bool is(std::size_t position, CharClass wanted) const { return position < text_.size() && at(position) == wanted; }
  /// Where the run of characters of one class that holds `position` ends.
  std::size_t run_end(std::size_t position, CharClass wanted) const {
    std::size_t length = 0;
    while (position < text_.size() && at(position, length) == wanted) position += length;
    return position;
  }

 private:
  std::string_view text_;
  const CharClass* classes_;
};

/// White space from `start` on: where it ends, where its last character begins, and where its last line break ends.
struct SpaceRun {
  std::size_t end, last_start, after_line_break = 0;
};

SpaceRun read_space(std::string_view text, const ClassReader& reader, std::size_t start) {
  SpaceRun run{.end = start, .last_start = start};
  std::size_t length = 0;
  while (run.end < text.size() && reader.at(run.end, length) == CharClass::kSpace) {
    run.last_start = run.end;
    const char c = text[run.end];
    run.end += length;
    if (c == '\n' || c == '\r') run.after_line_break = run.end;
  }
  return run;
}

/// `\s+(?!\S)|\s+`: all of the run at the end of the text, else without its last character, which may belong to a word.
std::size_t space_piece_end(std::string_view text, const SpaceRun& run, std::size_t start) {
  return run.end == text.size() || run.last_start == start ? run.end : run.last_start;
}

/// Length of the contraction ('s 't 're 've 'm 'll 'd) at `position`, which holds an apostrophe; 0 when there is none.
std::size_t contraction_length(std::string_view text, std::size_t position) {
  const std::string_view rest = text.substr(position + 1, 2);
  if (rest.empty()) return 0;
  if (rest[0] == 's' || rest[0] == 't' || rest[0] == 'm' || rest[0] == 'd') return 2;
  return rest == "re" || rest == "ve" || rest == "ll" ? 3 : 0;
}

/// The same with letters of either case; U+017F (long s) is a case of s.
std::size_t caseless_contraction_length(std::string_view text, std::size_t position) {
  if (text.substr(position + 1, 2) == "\xC5\xBF") return 3;
  std::string lower(text.substr(position, 3));
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return contraction_length(lower, 0);
}

std::size_t gpt2_piece_end(std::string_view text, const ClassReader& reader, std::size_t start) {
  if (text[start] == '\'') {
    const std::size_t length = contraction_length(text, start);
    if (length > 0) return start + length;
  }
  // One space may lead a run of letters, of numbers or of symbols.
  const std::size_t content = text[start] == ' ' && start + 1 < text.size() ? start + 1 : start;
  const CharClass content_class = reader.at(content);
  if (content_class != CharClass::kSpace) return reader.run_end(content, content_class);
  return space_piece_end(text, read_space(text, reader, start), start);
}

std::size_t qwen2_piece_end(std::string_view text, const ClassReader& reader, std::size_t start,
                            std::int64_t max_digits) {
  std::size_t length = 0;
  const CharClass first_class = reader.at(start, length);
  const char first = text[start];
  if (first == '\'') {
    const std::size_t contraction = caseless_contraction_length(text, start);
    if (contraction > 0) return start + contraction;
  }
  if (first_class == CharClass::kLetter) return reader.run_end(start, CharClass::kLetter);
  if (first_class == CharClass::kNumber) {
    std::size_t end = start;
    for (std::int64_t i = 0; i < max_digits && reader.is(end, CharClass::kNumber); ++i) {
      reader.at(end, length);
      end += length;
    }
    return end;
  }
  if (first != '\r' && first != '\n' && reader.is(start + length, CharClass::kLetter)) {
    return reader.run_end(start + length, CharClass::kLetter);
  }
  const std::size_t symbols = first == ' ' ? start + 1 : start;
  if (reader.is(symbols, CharClass::kOther)) {
    std::size_t end = reader.run_end(symbols, CharClass::kOther);
    while (end < text.size() && (text[end] == '\r' || text[end] == '\n')) ++end;
    return end;
  }
  const SpaceRun run = read_space(text, reader, start);
  return run.after_line_break > 0 ? run.after_line_break : space_piece_end(text, run, start);
}

}  // namespace

void split_gpt2(std::string_view text, Pieces& pieces) {
  const ClassReader reader(text);
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = gpt2_piece_end(text, reader, start);
    pieces.push_back(text.substr(start, end - start));
    start = end;
  }
}

void split_qwen2(std::string_view text, std::int64_t max_digits, Pieces& pieces) {
  const ClassReader reader(text);
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = qwen2_piece_end(text, reader, start, max_digits);
    pieces.push_back(text.substr(start, end - start));
    start = end;
  }
}

void split_digits(std::string_view text, Pieces& pieces) {
  const ClassReader reader(text);
  std::size_t start = 0, length = 0;
  for (std::size_t position = 0; position < text.size(); position += length) {
    if (!reader.is_digit(position, length)) continue;
    if (position > start) pieces.push_back(text.substr(start, position - start));
    pieces.push_back(text.substr(position, length));
    start = position + length;
  }
  if (start < text.size()) pieces.push_back(text.substr(start));
}

}  // namespace dagmoe
