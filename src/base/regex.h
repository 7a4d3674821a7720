#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// Whether a regular expression (PCRE2, whose common part is Python's) matches all of `text`. Throws InputError, which
/// names `where`, for one that is malformed.
bool regex_matches_all(const std::string& pattern, std::string_view text, const std::string& where);

/// A regular expression that is searched for as Python's re does with texts: \d, \w and \s are Unicode's, '.' stops at
/// a line feed, and an empty match may follow a match that is not.
class Regex {
 public:
  /// Throws InputError with the reason only: "regular expression '(' at character 1: missing closing parenthesis".
  explicit Regex(const std::string& pattern);
  /// Groups of one match: the whole match first, then the groups; "" for one that took no part.
  using Groups = std::span<const std::string_view>;
  /// Every match from left to right. Throws InputError with the reason only for one that takes too long.
  void for_each_match(std::string_view text, const std::function<void(Groups)>& use) const;
  /// re.findall: the first group of each match, or all of it for a pattern without groups, or all groups.
  std::vector<std::vector<std::string>> find_all(std::string_view text) const;
  /// re.sub: every match becomes what `replacement` says.
  std::string replace(std::string_view text, const std::function<std::string(Groups)>& replacement) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace dagmoe
