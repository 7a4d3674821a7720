#pragma once

#include <filesystem>
#include <functional>

#include "checkpoint/import_gguf_metadata.h"
#include "model/config.h"

namespace dagmoe {

/// Checks the tokenizer.ggml.* keys (contracts.md 2.4) and returns what writes them as tokenizer files into a folder:
/// byte-level BPE as tokenizer.json, sentencepiece as tokenizer.model. Throws InputError for any other kind.
std::function<void(const std::filesystem::path& folder)> gguf_tokenizer_writer(const GgufMetadata& metadata,
                                                                               const ModelConfig& config);

}  // namespace dagmoe
