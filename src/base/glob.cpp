#include "base/glob.h"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <system_error>

namespace dagmoe {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// A bracket expression at the start of `pattern`: what stands inside and how long it is with its brackets.
struct Bracket {
  std::string_view body;
  std::size_t length = 0;
};

// Without a closing bracket '[' is an ordinary character; a ']' directly behind '[' belongs to the set.
std::optional<Bracket> bracket_at(std::string_view pattern) {
  if (!pattern.starts_with('[')) return std::nullopt;
  const std::size_t end = pattern.find(']', 2);
  if (end == std::string_view::npos) return std::nullopt;
  return Bracket{pattern.substr(1, end - 1), end + 1};
}

// The whole text as a number; empty for anything else and for what does not fit in 64 bits.
std::optional<std::uint64_t> whole_number(std::string_view digits) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

struct NumberRange {
  std::uint64_t first = 0, last = 0;
};

std::optional<NumberRange> number_range(std::string_view body) {
  const std::size_t dash = body.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto first = whole_number(body.substr(0, dash)), last = whole_number(body.substr(dash + 1));
  if (!first || !last) return std::nullopt;
  return NumberRange{*first, *last};
}

bool set_contains(std::string_view set, char c) {
  const bool negated = set.starts_with('!') || set.starts_with('^');
  if (negated) set.remove_prefix(1);
  bool found = false;
  for (std::size_t i = 0; i < set.size(); ++i) {
    if (i + 2 < set.size() && set[i + 1] == '-') {
      found = found || (set[i] <= c && c <= set[i + 2]);
      i += 2;
    } else {
      found = found || set[i] == c;
    }
  }
  return found != negated;
}

/// One step of a match: how much of pattern and name it uses up. Names are matched a byte at a time.
struct Step {
  std::size_t pattern_length = 0, name_length = 0;
};

// Matches the pattern element at p (never '*') with the name at n.
std::optional<Step> match_element(std::string_view pattern, std::size_t p, std::string_view name, std::size_t n) {
  if (n >= name.size()) return std::nullopt;
  const auto bracket = bracket_at(pattern.substr(p));
  if (!bracket) {
    if (pattern[p] != '?' && pattern[p] != name[n]) return std::nullopt;
    return Step{1, 1};
  }
  const auto range = number_range(bracket->body);
  if (!range) {
    if (!set_contains(bracket->body, name[n])) return std::nullopt;
    return Step{bracket->length, 1};
  }
  // The range compares whole numbers: "*[8-15]" must not find the 8 of "128". A digit written before the bracket, as in
  // "1[0-9]", is meant as the number's beginning.
  const bool inside_number = n > 0 && is_digit(name[n - 1]) && !(p > 0 && is_digit(pattern[p - 1]));
  std::size_t length = 0;
  while (n + length < name.size() && is_digit(name[n + length])) ++length;
  const auto value = whole_number(name.substr(n, length));
  if (inside_number || !value || *value < range->first || *value > range->last) return std::nullopt;
  return Step{bracket->length, length};
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view name) {
  // Every element but '*' uses up a fixed part of the name, so going back to the last '*' is enough: no exponential
  // cases.
  std::size_t p = 0, n = 0, retry_pattern = 0, retry_name = 0;
  bool have_star = false;
  while (p < pattern.size() || n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      have_star = true;
      retry_pattern = ++p;
      retry_name = n;
      continue;
    }
    const auto step = p < pattern.size() ? match_element(pattern, p, name, n) : std::nullopt;
    if (step) {
      p += step->pattern_length;
      n += step->name_length;
    } else if (have_star && retry_name < name.size()) {
      p = retry_pattern;
      n = ++retry_name;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace dagmoe
