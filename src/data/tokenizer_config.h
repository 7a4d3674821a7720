#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer_added_tokens.h"

namespace dagmoe {

/// What tokenizer_config.json says beside the tokenizer itself; everything is optional.
struct TokenizerConfig {
  std::optional<std::string> bos, eos, unk, pad;  ///< as the vocabulary spells them
  std::string tokenizer_class;                    ///< "" when it is not said
  std::optional<bool> add_bos, add_eos, add_prefix_space;
  std::optional<bool> legacy;            ///< sentencepiece: a space before every stretch, or before the first only
  std::vector<AddedToken> added_tokens;  ///< "added_tokens_decoder"
  std::string chat_template;             ///< the one named "default" when there are several; "" for none
};

/// Reads tokenizer_config.json and, for tokens it does not name, special_tokens_map.json. Neither has to be there.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder);

}  // namespace dagmoe
