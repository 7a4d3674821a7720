#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// What pre-tokenizers ask of a character: \p{L}, \p{N}, White_Space, or none of them. The Digits step of Hugging Face
/// tokenizers knows 13 numbers that their regex engine is too old for: kRecentNumber.
enum class CharClass : std::uint8_t { kOther, kLetter, kNumber, kSpace, kRecentNumber };

/// One character of UTF-8 text. A byte that is no UTF-8 counts as a character of its own with value kInvalidCodePoint.
inline constexpr char32_t kInvalidCodePoint = 0xFFFFFFFF;
struct Utf8Char {
  char32_t value = kInvalidCodePoint;
  std::size_t length = 1;
};
/// The character that starts at `position` (inside the text). Refuses overlong forms, surrogates and values above
/// U+10FFFF.
Utf8Char decode_utf8(std::string_view text, std::size_t position);
void append_utf8(std::string& text, char32_t code_point);

/// The class of every code point, by its value; a constant of 0x110000 entries.
const std::vector<CharClass>& char_class_table();
/// A character that belongs to a word (\w): letters, marks, decimal and letter numbers, connectors.
bool is_word_char(char32_t code_point);

/// Unicode's simple case mappings, one character to one.
char32_t simple_lower(char32_t code_point);
char32_t simple_upper(char32_t code_point);
char32_t simple_title(char32_t code_point);

/// Unicode normalization form C. Text that is not valid UTF-8 is returned as it is.
std::string normalize_nfc(std::string_view text);
/// Every maximal piece that is no valid UTF-8 becomes one U+FFFD, as Unicode and Rust's from_utf8_lossy do.
std::string replace_invalid_utf8(std::string_view text);
/// Without white space at both ends, as Python's str.strip() and Jinja's trim see it.
std::string_view strip_white_space(std::string_view text);
/// Every occurrence of `from`, which is not empty, becomes `to`.
void replace_all(std::string& text, std::string_view from, std::string_view to);

}  // namespace dagmoe
