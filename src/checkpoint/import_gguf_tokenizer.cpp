#include "checkpoint/import_gguf_tokenizer.h"

#include <array>

#include "data/sentencepiece_write.h"
#include "data/tokenizer.h"

namespace dagmoe {
namespace {

// The kinds of tokens in tokenizer.ggml.token_type.
constexpr std::int64_t kNormalToken = 1, kUnknownToken = 2, kControlToken = 3, kUserDefinedToken = 4, kByteToken = 6;
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";

const std::vector<std::string>& needed_texts(const GgufMetadata& metadata, std::string_view key) {
  const auto* texts = metadata.array<std::string>(key);
  if (texts == nullptr) metadata.fail(key, "is missing");
  return *texts;
}

void check_count(const GgufMetadata& metadata, std::string_view key, std::size_t count, std::size_t num_tokens) {
  if (count != num_tokens) metadata.fail(key, str("has ", count, " entries for ", num_tokens, " tokens"));
}

/// One kind for each token; all are normal when the file does not say.
std::vector<std::int64_t> token_types(const GgufMetadata& metadata, std::size_t num_tokens) {
  const auto* types = metadata.array<std::int64_t>(kTypes);
  if (types == nullptr) return std::vector<std::int64_t>(num_tokens, kNormalToken);
  check_count(metadata, kTypes, types->size(), num_tokens);
  for (std::size_t id = 0; id < num_tokens; ++id) {
    const std::int64_t type = (*types)[id];
    if (type < kNormalToken || type > kByteToken)
      metadata.fail(kTypes, str("token ", id, " has the unknown type ", type));
  }
  return *types;
}

std::vector<TokenId> ids_of_type(const std::vector<std::int64_t>& types, std::int64_t type) {
  std::vector<TokenId> ids;
  for (std::size_t id = 0; id < types.size(); ++id) {
    if (types[id] == type) ids.push_back(static_cast<TokenId>(id));
  }
  return ids;
}

std::optional<TokenId> token_id(const GgufMetadata& metadata, std::string_view key, std::size_t num_tokens) {
  const std::optional<std::int64_t> id = metadata.integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || static_cast<std::uint64_t>(*id) >= num_tokens) {
    metadata.fail(key, str("found ", *id, ", expected one of the ", num_tokens, " tokens"));
  }
  return static_cast<TokenId>(*id);
}

// llama.cpp puts BOS first for these byte-level tokenizers unless the file says otherwise.
bool adds_bos_by_name(const std::string& pre) { return pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3"; }

BpeVocabulary read_bpe(const GgufMetadata& metadata, std::int64_t max_length) {
  BpeVocabulary vocabulary;
  vocabulary.where = metadata.file().path().string();
  vocabulary.tokens = needed_texts(metadata, "tokenizer.ggml.tokens");
  vocabulary.merges = needed_texts(metadata, "tokenizer.ggml.merges");
  const std::size_t num_tokens = vocabulary.tokens.size();
  const std::vector<std::int64_t> types = token_types(metadata, num_tokens);
  vocabulary.special_ids = ids_of_type(types, kControlToken);
  vocabulary.user_defined_ids = ids_of_type(types, kUserDefinedToken);
  vocabulary.pre_tokenizer = metadata.text("tokenizer.ggml.pre");
  vocabulary.bos = token_id(metadata, "tokenizer.ggml.bos_token_id", num_tokens);
  vocabulary.eos = token_id(metadata, "tokenizer.ggml.eos_token_id", num_tokens);
  vocabulary.unk = token_id(metadata, "tokenizer.ggml.unknown_token_id", num_tokens);
  vocabulary.pad = token_id(metadata, "tokenizer.ggml.padding_token_id", num_tokens);
  vocabulary.add_bos =
      metadata.boolean("tokenizer.ggml.add_bos_token").value_or(adds_bos_by_name(vocabulary.pre_tokenizer));
  vocabulary.chat_template = metadata.text("tokenizer.chat_template");
  vocabulary.max_length = max_length;
  return vocabulary;
}

/// The piece for text that no other piece covers. Newer files call it a control token like any other.
TokenId unknown_id(const GgufMetadata& metadata, const SentencePieceVocabulary& vocabulary,
                   const std::vector<std::int64_t>& types) {
  constexpr std::string_view kKey = "tokenizer.ggml.unknown_token_id";
  if (const auto id = token_id(metadata, kKey, types.size())) return *id;
  const std::vector<TokenId> ids = ids_of_type(types, kUnknownToken);
  if (ids.size() == 1) return ids.front();
  for (std::size_t id = 0; id < types.size(); ++id) {
    if (vocabulary.pieces[id].text == "<unk>") return static_cast<TokenId>(id);
  }
  metadata.fail(kKey, "is missing, and no other key says which token is the unknown one");
}

SentencePieceVocabulary read_sentencepiece(const GgufMetadata& metadata, std::int64_t max_length) {
  constexpr std::string_view kScores = "tokenizer.ggml.scores", kCharsMap = "tokenizer.ggml.precompiled_charsmap";
  const auto& tokens = needed_texts(metadata, "tokenizer.ggml.tokens");
  const auto* scores = metadata.array<double>(kScores);
  if (scores == nullptr) metadata.fail(kScores, "is missing");
  check_count(metadata, kScores, scores->size(), tokens.size());
  if (metadata.file().find(kCharsMap) != nullptr) metadata.fail(kCharsMap, "a normalizer is not supported");
  const std::vector<std::int64_t> types = token_types(metadata, tokens.size());
  SentencePieceVocabulary vocabulary;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    vocabulary.pieces.push_back({.text = tokens[id],
                                 .score = static_cast<float>((*scores)[id]),
                                 .type = static_cast<SentencePieceType>(types[id])});
  }
  vocabulary.unk = unknown_id(metadata, vocabulary, types);
  vocabulary.bos = token_id(metadata, "tokenizer.ggml.bos_token_id", tokens.size());
  vocabulary.eos = token_id(metadata, "tokenizer.ggml.eos_token_id", tokens.size());
  vocabulary.pad = token_id(metadata, "tokenizer.ggml.padding_token_id", tokens.size());
  vocabulary.add_bos = metadata.boolean("tokenizer.ggml.add_bos_token").value_or(true);
  vocabulary.add_dummy_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  vocabulary.remove_extra_whitespaces = metadata.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  vocabulary.chat_template = metadata.text("tokenizer.chat_template");
  vocabulary.max_length = max_length;
  return vocabulary;
}

}  // namespace

std::function<void(const std::filesystem::path& folder)> gguf_tokenizer_writer(const GgufMetadata& metadata,
                                                                               const ModelConfig& config) {
  constexpr std::string_view kModel = "tokenizer.ggml.model", kTokens = "tokenizer.ggml.tokens",
                             kAddEos = "tokenizer.ggml.add_eos_token";
  const std::string model = metadata.text(kModel);
  if (model != "gpt2" && model != "llama") {
    metadata.fail(
        kModel, str("found ", quoted_for_message(model), ", supported: gpt2 (byte-level BPE), llama (sentencepiece)"));
  }
  const std::size_t num_tokens = needed_texts(metadata, kTokens).size();
  if (static_cast<std::int64_t>(num_tokens) > config.vocab_size) {
    metadata.fail(kTokens, str("has ", num_tokens, " tokens, more than the vocabulary's ", config.vocab_size));
  }
  if (metadata.boolean(kAddEos).value_or(false)) {
    metadata.fail(kAddEos, "an end token after every text is not supported");
  }
  if (model == "gpt2") {
    return [vocabulary = read_bpe(metadata, config.max_position_embeddings)](const std::filesystem::path& folder) {
      write_tokenizer_files(folder, vocabulary);
    };
  }
  return [vocabulary = read_sentencepiece(metadata, config.max_position_embeddings)](
             const std::filesystem::path& folder) { write_sentencepiece_files(folder, vocabulary); };
}

}  // namespace dagmoe
