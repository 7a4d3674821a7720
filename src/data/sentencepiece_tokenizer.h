#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "data/metaspace.h"
#include "data/tokenizer.h"
#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

/// What a model folder says beside its tokenizer.model.
struct SentencePieceSettings {
  SpacePrefix prefix = SpacePrefix::kModel;
  std::optional<bool> adds_bos;  ///< absent: when the model has a BOS
  bool adds_eos = false;
  std::vector<AddedToken> added_tokens;  ///< beside the control pieces of the model
};

/// The rule that fits a folder: from tokenizer.json when there is one, else from "legacy", else the model's own. Throws
/// InputError for a tokenizer.json with a pre-tokenizer or normalizer that sentencepiece models do not have.
SentencePieceSettings sentencepiece_settings(const TokenizerJson* document, const TokenizerConfig& config);

/// Throws InputError when the file is missing or no sentencepiece model.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::filesystem::path& file, const SentencePieceSettings& settings,
                                              const TokenizerConfig& config);

}  // namespace dagmoe
