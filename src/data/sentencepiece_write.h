#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

/// Kinds of pieces, with the numbers that both sentencepiece_model.proto and tokenizer.ggml.token_type give them.
enum class SentencePieceType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct SentencePiece {
  std::string text;
  float score = 0.0f;
  SentencePieceType type = SentencePieceType::kNormal;
};

/// What a tokenizer.model of the BPE kind is made of, as the GGUF importer knows it from tokenizer.ggml.* keys. It has
/// no normalizer.
struct SentencePieceVocabulary {
  std::vector<SentencePiece> pieces;  ///< by id
  TokenId unk = 0;                    ///< becomes the one piece of type unknown
  std::optional<TokenId> bos, eos, pad;
  bool add_bos = true;
  bool add_dummy_prefix = true;  ///< a space before every text
  bool remove_extra_whitespaces = false;
  std::string chat_template;    ///< Jinja text, may be empty
  std::int64_t max_length = 0;  ///< model_max_length
};

/// The bytes of a tokenizer.model: sentencepiece's ModelProto. User-defined pieces are control pieces in it, which
/// sentencepiece never finds in a text: Hugging Face cuts them out of the text before.
std::string sentencepiece_model(const SentencePieceVocabulary& vocabulary);

/// Writes tokenizer.model, tokenizer_config.json (with control and user-defined pieces as added tokens),
/// special_tokens_map.json and chat_template.jinja (when there is one) into `folder`. "legacy" is left out, so that
/// load_tokenizer follows the model, as llama.cpp does. Throws InputError for pieces that are empty or occur twice.
void write_sentencepiece_files(const std::filesystem::path& folder, const SentencePieceVocabulary& vocabulary);

}  // namespace dagmoe
