#include "eval/python_text.h"

#include <initializer_list>

#include "data/unicode.h"

namespace dagmoe {
namespace {

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

bool is_python_space(char32_t c) {
  return in_range(c, 0x09, 0x0D) || in_range(c, 0x1C, 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         in_range(c, 0x2000, 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view python_strip(std::string_view text) {
  text.remove_suffix(trailing_space_bytes(text));
  return python_lstrip(text);
}

std::string_view python_lstrip(std::string_view text) {
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

std::string python_lower(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const auto [value, length] = decode_utf8(text, i);
    if (value == kInvalidCodePoint) {
      result += text.substr(i, length);
    } else {
      append_utf8(result, lower(value));
    }
    i += length;
  }
  return result;
}

std::string python_upper(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const auto [value, length] = decode_utf8(text, i);
    if (value == kSharpS) {
      result += "SS";
    } else if (value == kInvalidCodePoint) {
      result += text.substr(i, length);
    } else {
      append_utf8(result, upper(value));
    }
    i += length;
  }
  return result;
}

std::int64_t count_words(std::string_view text) {
  std::int64_t words = 1;
  bool in_space = false;
  for (std::size_t i = 0; i < text.size();) {
    const auto [value, length] = decode_utf8(text, i);
    const bool is_space = value != kInvalidCodePoint && is_python_space(value);
    words += is_space && !in_space ? 1 : 0;
    in_space = is_space;
    i += length;
  }
  return words;
}

}  // namespace dagmoe
