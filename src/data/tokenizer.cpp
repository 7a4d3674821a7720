#include "data/tokenizer.h"

#include "base/error.h"
#include "base/text.h"
#include "data/byte_bpe.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

bool has_tokenizer(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / "tokenizer.json") || std::filesystem::exists(folder / "tokenizer.model") ||
         std::filesystem::exists(folder / "vocab.json");
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  const auto json_file = folder / "tokenizer.json", model_file = folder / "tokenizer.model";
  const bool has_model = std::filesystem::exists(model_file);
  const TokenizerConfig config = read_tokenizer_config(folder);
  if (!std::filesystem::exists(json_file)) {
    if (has_model) return make_sentencepiece(model_file, sentencepiece_settings(nullptr, config), config);
    throw InputError(str(folder.string(), ": no tokenizer: found neither tokenizer.json nor tokenizer.model"));
  }
  const TokenizerJson document = read_tokenizer_json(json_file);
  if (is_byte_bpe(document) || !has_model) return make_byte_bpe(document, config);
  return make_sentencepiece(model_file, sentencepiece_settings(&document, config), config);
}

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file) {
  return make_byte_bpe(read_tokenizer_json(file), {});
}

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file) {
  return make_sentencepiece(file, {}, {});
}

}  // namespace dagmoe
