#include "eval/python_text.h"

#include "data/unicode.h"

namespace dagmoe {
namespace {

bool in_range(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

// Of the characters that Python maps to several only this one is known.
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
      append_utf8(result, i == 0 ? simple_title(value) : simple_lower(value));
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
      append_utf8(result, simple_lower(value));
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
      append_utf8(result, simple_upper(value));
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
