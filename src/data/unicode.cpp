#include "data/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>

#include "data/unicode_ranges.h"

namespace dagmoe {

namespace {

constexpr char32_t kNumCodePoints = 0x110000;

/// What the Unicode standard (table 3-7) allows after a lead byte. `num_bytes` 0: no lead byte.
struct LeadByte {
  std::size_t num_bytes = 0;
  unsigned char second_min = 0x80, second_max = 0xBF;
};

LeadByte lead_byte(unsigned char byte) {
  if (byte < 0x80) return {.num_bytes = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.num_bytes = 2};
  if (byte == 0xE0) return {.num_bytes = 3, .second_min = 0xA0};
  if (byte == 0xED) return {.num_bytes = 3, .second_max = 0x9F};
  if (byte < 0xF0) return {.num_bytes = 3};
  if (byte == 0xF0) return {.num_bytes = 4, .second_min = 0x90};
  if (byte < 0xF4) return {.num_bytes = 4};
  if (byte == 0xF4) return {.num_bytes = 4, .second_max = 0x8F};
  return {};
}

/// Number of bytes at `position` that could begin a character: its whole length when they are one.
std::size_t num_plausible_bytes(std::string_view text, std::size_t position, const LeadByte& lead) {
  std::size_t count = 1;
  while (count < lead.num_bytes && position + count < text.size()) {
    const auto byte = static_cast<unsigned char>(text[position + count]);
    const unsigned char min = count == 1 ? lead.second_min : 0x80;
    const unsigned char max = count == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) break;
    ++count;
  }
  return count;
}

std::vector<CharClass> make_char_class_table() {
  std::vector<CharClass> classes(kNumCodePoints, CharClass::kOther);
  const auto fill = [&classes](const auto& ranges, CharClass value) {
    for (const CodePointRange& range : ranges) {
      std::fill(classes.begin() + range.first, classes.begin() + range.last + 1, value);
    }
  };
  fill(kLetterRanges, CharClass::kLetter);
  fill(kNumberRanges, CharClass::kNumber);
  fill(kRecentNumberRanges, CharClass::kRecentNumber);
  fill(kSpaceRanges, CharClass::kSpace);
  return classes;
}

}  // namespace

Utf8Char decode_utf8(std::string_view text, std::size_t position) {
  const auto first = static_cast<unsigned char>(text[position]);
  if (first < 0x80) return {.value = first, .length = 1};
  const LeadByte lead = lead_byte(first);
  if (lead.num_bytes == 0 || num_plausible_bytes(text, position, lead) < lead.num_bytes) return {};
  // 2, 3 and 4 bytes carry 5, 4 and 3 bits in the first one.
  char32_t value = first & (0x7F >> lead.num_bytes);
  for (std::size_t i = 1; i < lead.num_bytes; ++i) {
    value = (value << 6) | (static_cast<unsigned char>(text[position + i]) & 0x3F);
  }
  return {.value = value, .length = lead.num_bytes};
}

void append_utf8(std::string& text, char32_t code_point) {
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | (code_point >> 6));
    text += static_cast<char>(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | (code_point >> 12));
    text += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
    text += static_cast<char>(0x80 | (code_point & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | (code_point >> 18));
    text += static_cast<char>(0x80 | ((code_point >> 12) & 0x3F));
    text += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
    text += static_cast<char>(0x80 | (code_point & 0x3F));
  }
}

const std::vector<CharClass>& char_class_table() {
  static const std::vector<CharClass> table = make_char_class_table();
  return table;
}

bool is_word_char(char32_t code_point) {
  if (code_point >= kNumCodePoints) return false;
  if (char_class_table()[code_point] == CharClass::kLetter) return true;
  const auto holds = [code_point](const CodePointRange& range) {
    return range.first <= code_point && code_point <= range.last;
  };
  return std::any_of(std::begin(kOtherWordRanges), std::end(kOtherWordRanges), holds);
}

char32_t simple_lower(char32_t code_point) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point)));
}

char32_t simple_upper(char32_t code_point) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code_point)));
}

char32_t simple_title(char32_t code_point) {
  return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code_point)));
}

std::string normalize_nfc(std::string_view text) {
  // Every code point below U+0300 is its own NFC form; 0xCC is the first lead byte beyond.
  const auto may_change = [](char c) { return static_cast<unsigned char>(c) >= 0xCC; };
  if (std::none_of(text.begin(), text.end(), may_change)) return std::string(text);
  utf8proc_uint8_t* mapped = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (size < 0) return std::string(text);
  return std::string(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size));
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t position = 0; position < text.size();) {
    const LeadByte lead = lead_byte(static_cast<unsigned char>(text[position]));
    const std::size_t count = lead.num_bytes == 0 ? 1 : num_plausible_bytes(text, position, lead);
    if (count == lead.num_bytes) {
      result += text.substr(position, count);
    } else {
      result += "\uFFFD";
    }
    position += count;
  }
  return result;
}

std::string_view strip_white_space(std::string_view text) {
  // Python counts the four separators U+001C to U+001F, too.
  const auto is_space = [](const Utf8Char& c) {
    return c.value != kInvalidCodePoint &&
           (char_class_table()[c.value] == CharClass::kSpace || (c.value >= 0x1C && c.value <= 0x1F));
  };
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text, 0);
    if (!is_space(c)) break;
    text.remove_prefix(c.length);
  }
  while (!text.empty()) {
    std::size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_space(decode_utf8(text, start))) break;
    text = text.substr(0, start);
  }
  return text;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (text.find(from) == std::string::npos) return;
  std::string result;
  result.reserve(text.size());
  std::size_t done = 0;
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, done)) {
    result.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  text = result.append(text, done);
}

}  // namespace dagmoe
