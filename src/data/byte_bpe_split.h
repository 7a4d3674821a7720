#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

using Pieces = std::vector<std::string_view>;

/// The regular expressions of the model families, spelled as tokenizer.json spells them.
inline constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Hand-written equals of the three; append the pieces of `text`, which together are the text.
void split_gpt2(std::string_view text, Pieces& pieces);
/// `max_digits` is 1 for Qwen2 and 3 for Llama 3.
void split_qwen2(std::string_view text, std::int64_t max_digits, Pieces& pieces);
/// Every \p{N} character is a piece of its own, so are the stretches between.
void split_digits(std::string_view text, Pieces& pieces);

/// Splits by any regular expression, matches and what lies between them alike ("Isolated"): PCRE2 made to read
/// Oniguruma's syntax, which tokenizer.json uses. The slow twin of the functions above. PCRE2 10.42 knows the letters
/// of Unicode 14.
class RegexSplitter {
 public:
  /// Throws InputError, with `where` in front, for a pattern that is broken or that the two engines read differently.
  RegexSplitter(std::string_view pattern, const std::string& where);
  ~RegexSplitter();
  RegexSplitter(RegexSplitter&&) noexcept;
  RegexSplitter& operator=(RegexSplitter&&) noexcept;
  void split(std::string_view text, Pieces& pieces) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Oniguruma's spelling of a pattern as PCRE2 reads it the same way: \s is White_Space, \w has marks and connectors.
/// Throws InputError for constructs with another meaning (\h, \b, (?m), class intersections, ...).
std::string onig_to_pcre2(std::string_view pattern, const std::string& where);

}  // namespace dagmoe
