#pragma once

#include <optional>
#include <string>

#include "data/tokenizer_config.h"
#include "data/tokenizer_json.h"

namespace dagmoe {

/// The tokens, as the vocabulary spells them, that encoding "with special tokens" puts around a text.
struct SpecialFrame {
  std::optional<std::string> before, behind;
};

/// From the post-processor of a tokenizer.json: TemplateProcessing, ByteLevel (adds nothing), a sequence of them, none.
/// Where it has no template and the class is Llama's, add_bos_token and add_eos_token of tokenizer_config.json decide:
/// that class made its post-processor of them when DeepSeek's checkpoints were published. Otherwise the template counts
/// and a flag that contradicts it is warned of, as transformers 5.23.0 ignores the flags. Throws InputError for a type
/// that is not known and for more than one token on a side.
SpecialFrame special_frame(const TokenizerJson& document, const TokenizerConfig& config);

}  // namespace dagmoe
