#pragma once

#include <memory>

#include "data/byte_bpe_pre_tokenizer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

/// A tokenizer.json with a model of type BPE, in its two forms: cut out added tokens, normalize, pre-tokenize, merge.
/// - byte-level (contracts.md 3.1): pre-tokenizer and decoder ByteLevel; merging starts from bytes.
/// - converted from sentencepiece (contracts.md 3.2; the fast files of Llama-2 and Mistral): Metaspace, or Prepend and
///   Replace in the normalizer; merging starts from characters, with bytes ("<0x0A>") for those that have no token.
/// Throws InputError for every part that is not known.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(const TokenizerJson& document, const TokenizerConfig& config,
                                              PreTokenizer::Route route = PreTokenizer::Route::kFast);

}  // namespace dagmoe
