#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "data/byte_bpe_split.h"

namespace dagmoe {

/// The "pre_tokenizer" of a tokenizer.json: steps that cut a text into ever smaller pieces, the last of them ByteLevel.
class PreTokenizer {
 public:
  /// Whether the three known regular expressions run as hand-written code; kRegexOnly is the slow twin, for tests.
  enum class Route { kFast, kRegexOnly };
  /// Throws InputError for a step or an option that is not known; never a guess.
  PreTokenizer(const Json& pre_tokenizer, const std::string& where, Route route = Route::kFast);

  /// Replaces `pieces` by those of `text`, in order.
  void split(std::string_view text, Pieces& pieces) const;
  /// "digits + gpt2"
  std::string description() const;

 private:
  enum class Kind { kDigits, kGpt2, kQwen2, kLlama3, kRegex };
  struct Step {
    Kind kind;
    std::string name;
    std::optional<RegexSplitter> regex;
    void split(std::string_view text, Pieces& pieces) const;
  };
  void add_step(const Json& step, const std::string& where);
  void add_split(const Json& step, const std::string& where);
  void add_regex(std::string_view pattern, const std::string& where);

  std::vector<Step> steps_;
  Route route_;
  bool has_byte_level_ = false;
};

}  // namespace dagmoe
