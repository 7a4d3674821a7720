#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

using TokenId = std::int32_t;

/// How text is encoded. `parse_special`: "<|im_end|>" in the text becomes its control token, as Hugging Face does for
/// every text; data loaders switch it off for users' text. `continues`: the text follows other text, so sentencepiece
/// adds no leading space. `after_control`: it follows a control token, so sentencepiece adds one where its rule says
/// "every stretch", but not where it says "the first".
struct EncodeOptions {
  bool add_bos = false, add_eos = false, parse_special = true, continues = false, after_control = false;
};

/// Text <-> token ids. Thread-safe: encode and decode change nothing. Text that is not valid UTF-8 is encoded as if
/// every maximal invalid piece of it were U+FFFD, as Python's bytes.decode("utf-8", "replace") has it.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const = 0;
  /// Control tokens are left out unless `keep_special`. Incomplete UTF-8 is replaced by U+FFFD.
  virtual std::string decode(std::span<const TokenId> ids, bool keep_special = false) const = 0;
  /// The exact bytes of one token, which may be an incomplete piece of UTF-8; what streaming output joins.
  virtual std::string token_bytes(TokenId id) const = 0;
  virtual std::optional<TokenId> bos_id() const noexcept = 0;  ///< several model families have none
  virtual std::optional<TokenId> eos_id() const noexcept = 0;
  /// The id of a whole token as the vocabulary spells it ("<|im_end|>"), if there is one.
  virtual std::optional<TokenId> id_of(std::string_view token) const = 0;
  virtual std::int64_t vocab_size() const noexcept = 0;  ///< largest id + 1
  /// True when encode with "special tokens" on puts BOS first (post-processor or add_bos_token).
  virtual bool adds_bos() const noexcept = 0;
  /// The same for EOS behind the text. Evaluation follows it, as lm-evaluation-harness does; training and chat do not:
  /// their templates end an answer themselves and leave a prompt open.
  virtual bool adds_eos() const noexcept { return false; }
  /// Number of bytes of `text` that no token stands for: encode drops them or puts an unknown token there.
  virtual std::int64_t count_lost_bytes(std::string_view text) const = 0;
  /// One line for people: "byte-level BPE, pre-tokenizer digits + gpt2, 49152 tokens".
  virtual std::string description() const = 0;
};

/// The tokenizer of a model folder: tokenizer.json (BPE, byte-level or converted from sentencepiece), else
/// tokenizer.model (sentencepiece, BPE or unigram), else vocab.json and merges.txt (GPT-2, Qwen2), with
/// tokenizer_config.json beside it for BOS/EOS. Throws InputError when there is none or when a part of it
/// (pre-tokenizer, normalizer) is not known: never a guess.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);
/// Whether a folder has any of the files that load_tokenizer reads.
bool has_tokenizer(const std::filesystem::path& folder);
/// The same of one file by its kind; for tests and for tools that have no folder.
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file);
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file);

/// What a tokenizer.json is made of, as the GGUF importer knows it from tokenizer.ggml.* keys.
struct BpeVocabulary {
  std::string where = "tokenizer";        ///< where it comes from, for messages
  std::vector<std::string> tokens;        ///< by id, in the byte alphabet
  std::vector<std::string> merges;        ///< "a b", best first
  std::vector<TokenId> special_ids;       ///< control tokens, become added tokens
  std::vector<TokenId> user_defined_ids;  ///< become added tokens that are no control tokens
  /// As tokenizer.ggml.pre names it: gpt-2, smollm (digits + gpt2), olmo, qwen2, llama-bpe (also llama3, llama-v3);
  /// anything else throws InputError. The name stands for the tokenizer as it was before the conversion, normalizer
  /// included.
  std::string pre_tokenizer;
  std::optional<TokenId> bos, eos, unk, pad;
  bool add_bos = false;
  std::string chat_template;    ///< Jinja text, may be empty
  std::int64_t max_length = 0;  ///< model_max_length
};
/// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja (when there is one)
/// into `folder`, in the form that transformers 5.23.0 reads back with the same ids (tokenizer_class
/// PreTrainedTokenizerFast, so that it keeps the pre-tokenizer; contracts.md 3.1).
void write_tokenizer_files(const std::filesystem::path& folder, const BpeVocabulary& vocabulary);

}  // namespace dagmoe
