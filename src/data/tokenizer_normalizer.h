#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace dagmoe {

/// The "normalizer" of a tokenizer.json, which every stretch of text goes through: NFC, and what files converted from
/// sentencepiece have, Prepend (U+2581) and Replace (the space by U+2581), alone or in sequence.
class Normalizer {
 public:
  Normalizer() = default;
  /// nullptr: none. Throws InputError for a type or an option that is not known.
  Normalizer(const Json* normalizer, const std::string& where);

  /// True when every text stays as it is.
  bool empty() const noexcept { return steps_.empty(); }
  /// `with_prefix` false leaves out Prepend: for text that continues other text.
  std::string apply(std::string_view text, bool with_prefix) const;
  bool has_prefix() const noexcept;
  /// "NFC, "; "" for steps that say nothing new.
  std::string description() const;

 private:
  enum class Kind { kNfc, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string from, to;
  };
  void add_step(const Json& step, const std::string& where);

  std::vector<Step> steps_;
};

}  // namespace dagmoe
