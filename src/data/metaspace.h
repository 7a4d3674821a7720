#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "data/byte_bpe_split.h"

namespace dagmoe {

/// U+2581, by which sentencepiece spells a space.
inline constexpr std::string_view kSpaceSymbol = "\u2581";

/// Where a stretch of text gets sentencepiece's leading space (contracts.md 3.2). The names are those of Hugging Face's
/// Metaspace, which never adds one to text that begins with a space.
enum class SpacePrefix {
  kModel,   ///< every stretch, as the .model file itself does it; also the legacy normalizer form
  kAlways,  ///< every stretch that does not begin with a space
  kFirst,   ///< the same for the first stretch only
  kNever
};
/// "as the model says", "before every stretch", ...
std::string_view prefix_text(SpacePrefix prefix);

/// The rule of a pre-tokenizer or decoder of type Metaspace, in either spelling. Throws InputError for one that is not
/// known.
SpacePrefix metaspace_prefix(const Json& metaspace, const std::string& where);

/// Spaces become U+2581.
std::string with_space_symbols(std::string_view text);
/// And back.
void restore_spaces(std::string& text);

/// The "pre_tokenizer" of a tokenizer.json that was converted from sentencepiece: Metaspace, or none (the normalizer
/// has done its work then).
class MetaspaceSplitter {
 public:
  /// `words_stand_alone`: no token of the vocabulary goes on beyond a word, so text may be cut before U+2581 with the
  /// same result, faster. Throws InputError for a step that is not known.
  MetaspaceSplitter(const Json* pre_tokenizer, bool words_stand_alone, const std::string& where);

  /// Whether a stretch gets the prefix; `is_first`: it begins the text.
  bool adds_prefix(std::string_view stretch, bool is_first) const;
  /// Replaces `pieces` by those of the stretch. `buffer` holds their bytes.
  void split(std::string_view stretch, bool with_prefix, std::string& buffer, Pieces& pieces) const;
  SpacePrefix prefix() const noexcept { return prefix_; }

 private:
  SpacePrefix prefix_ = SpacePrefix::kNever;
  bool replaces_spaces_ = false, splits_ = false, words_stand_alone_;
};

/// Whether a stretch gets the prefix under a rule; kModel always says yes.
bool adds_space_prefix(SpacePrefix rule, std::string_view stretch, bool is_first);

}  // namespace dagmoe
