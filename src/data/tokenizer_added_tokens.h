#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "data/tokenizer.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

/// A token that is cut out of the text before anything else, as tokenizer.json's "added_tokens" describes it.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool special = false;      ///< a control token: left alone when parse_special is off, left out when decoding
  bool normalized = false;   ///< searched in the normalized text instead of the original
  bool single_word = false;  ///< only where no word character is next to it
  bool lstrip = false;       ///< swallows white space on its left
  bool rstrip = false;       ///< and on its right
};

/// From an object with "content" and the flags, as tokenizer.json and tokenizer_config.json have it.
AddedToken read_added_token(const Json& object, TokenId id, const std::string& where);

/// The "added_tokens" of a tokenizer.json.
std::vector<AddedToken> read_added_tokens(const TokenizerJson& document);

/// A stretch of text, or one added token in its place.
struct TextStretch {
  std::string_view text;
  TokenId added_id = -1;  ///< -1: plain text
};

/// Finds added tokens: at the leftmost place, the longest one there. With the edge cases of Hugging Face tokenizers
/// 0.23.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  /// Appends the stretches of `text` in order; empty ones are left out.
  void split(std::string_view text, bool parse_special, std::vector<TextStretch>& stretches) const;
  bool empty() const noexcept { return tokens_.empty(); }

 private:
  const AddedToken* match_at(std::string_view text, std::size_t position) const;
  std::size_t next_candidate(std::string_view text, std::size_t position) const;

  std::vector<AddedToken> tokens_;  // sorted by first byte, longer ones first
  /// Where the tokens of a first byte begin and end in tokens_.
  struct Bucket {
    std::uint32_t begin = 0, end = 0;
  };
  std::array<Bucket, 256> buckets_{};
  int single_first_byte_ = -1;  // when all tokens share it: memchr is faster than a loop
};

}  // namespace dagmoe
