#pragma once

#include <memory>

#include "data/byte_bpe_pre_tokenizer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

/// Whether a tokenizer.json is byte-level BPE by its model, pre-tokenizer and decoder (and not, say, a converted
/// sentencepiece model).
bool is_byte_bpe(const TokenizerJson& document);

/// Byte-level BPE as tokenizer.json describes it (contracts.md 3.1): cut out added tokens, normalize, pre-tokenize,
/// merge. Throws InputError for every part that is not known.
std::unique_ptr<Tokenizer> make_byte_bpe(const TokenizerJson& document, const TokenizerConfig& config,
                                         PreTokenizer::Route route = PreTokenizer::Route::kFast);

}  // namespace dagmoe
