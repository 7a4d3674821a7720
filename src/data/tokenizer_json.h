#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace dagmoe {

struct TokenizerConfig;

/// Far more than any vocabulary has; keeps one wrong id from asking for gigabytes.
inline constexpr std::int64_t kMaxTokenId = (1 << 24) - 1;

/// A tokenizer.json, read but not yet judged. The two big parts of a BPE model are taken out of the JSON, because a
/// vocabulary has too many keys for a document that keeps their order.
struct TokenizerJson {
  std::string where;                ///< the path, for messages
  Json settings;                    ///< everything but model.vocab and model.merges
  std::vector<std::string> tokens;  ///< spelling by id, "" where unused; empty unless a vocabulary of ids
  std::vector<std::pair<std::string, std::string>> merges;  ///< from either spelling, "a b" or ["a", "b"]
};

/// What a folder with vocab.json and merges.txt says, as the tokenizer.json that its class stands for: GPT2Tokenizer
/// (ByteLevel with GPT-2's expression) or Qwen2Tokenizer (NFC, Qwen2's expression). added_tokens.json gives further
/// tokens. Throws InputError for any other class, and as read_tokenizer_json does.
TokenizerJson read_vocab_and_merges(const std::filesystem::path& folder, const TokenizerConfig& config);

/// Throws InputError for broken JSON, a missing model, and ids or merges that make no sense.
TokenizerJson read_tokenizer_json(const std::filesystem::path& path);

}  // namespace dagmoe
