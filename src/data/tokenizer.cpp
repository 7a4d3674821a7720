#include "data/tokenizer.h"

#include "base/error.h"
#include "base/text.h"
#include "data/bpe_tokenizer.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

namespace {

/// The special tokens that GPT2Tokenizer and Qwen2Tokenizer have when the folder names none; Qwen2 has no BOS.
TokenizerConfig with_class_tokens(TokenizerConfig config) {
  const std::string end = "<|endoftext|>";
  if (config.tokenizer_class == "GPT2Tokenizer" && !config.bos) config.bos = end;
  if (!config.eos) config.eos = end;
  if (!config.unk) config.unk = end;
  return config;
}

}  // namespace

bool has_tokenizer(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / "tokenizer.json") || std::filesystem::exists(folder / "tokenizer.model") ||
         (std::filesystem::exists(folder / "vocab.json") && std::filesystem::exists(folder / "merges.txt"));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  const auto json_file = folder / "tokenizer.json", model_file = folder / "tokenizer.model";
  const bool has_model = std::filesystem::exists(model_file);
  const TokenizerConfig config = read_tokenizer_config(folder);
  if (std::filesystem::exists(json_file)) {
    const TokenizerJson document = read_tokenizer_json(json_file);
    const Json& model = document.settings["model"];
    const bool is_bpe = model.contains("type") && model["type"] == "BPE";
    if (is_bpe || !has_model) return make_bpe_tokenizer(document, config);
    return make_sentencepiece(model_file, sentencepiece_settings(&document, config), config);
  }
  if (has_model) return make_sentencepiece(model_file, sentencepiece_settings(nullptr, config), config);
  if (std::filesystem::exists(folder / "vocab.json") && std::filesystem::exists(folder / "merges.txt")) {
    return make_bpe_tokenizer(read_vocab_and_merges(folder, config), with_class_tokens(config));
  }
  throw InputError(
      str(folder.string(),
          ": no tokenizer: found neither tokenizer.json, tokenizer.model, nor vocab.json with merges.txt"));
}

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file) {
  return make_bpe_tokenizer(read_tokenizer_json(file), {});
}

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file) {
  return make_sentencepiece(file, {}, {});
}

}  // namespace dagmoe
