#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/tokenizer.h"
#include "eval/language_model.h"
#include "eval/token_scores.h"
#include "model/decoder.h"

namespace dagmoe {

/// Limits of one batch; a single prompt that exceeds them is still answered, alone.
struct GenerationLimits {
  std::int64_t max_batch_tokens = 2048;   ///< of one pass
  std::int64_t max_cached_tokens = 8192;  ///< prompts and answers that are under way
};

/// One answer to be generated. Of the request only max_new_tokens, temperature, top_p and seed count: stop strings are
/// found in text, by TextStream (eval/text_stream.h) inside on_token.
struct GenerationTask {
  std::vector<TokenId> prompt;
  GenerateRequest request = {};
};

/// What happens while a batch is generated.
struct GenerationHooks {
  /// Gets the ids of each answer as they come; false ends it. The end of text is not among them.
  std::function<bool(std::size_t task, TokenId id)> on_token;
  /// The answer is complete.
  std::function<void(std::size_t task)> on_finished;
};

/// Continues every prompt, up to any of `end_ids` or its max_new_tokens or the model's length. Answers come and go
/// while others are under way (continuous batching): each pass takes one token of every answer and fills up with
/// prompts. What all prompts share at their beginnings is computed once. A sampled answer depends on its own seed
/// alone. Throws InputError for a prompt that is empty or leaves no room, NumericsError for a logit that is not finite.
void generate_batch(const Decoder& model, std::span<const GenerationTask> tasks, const std::vector<TokenId>& end_ids,
                    const GenerationLimits& limits, const GenerationHooks& hooks, ScoringWork* work = nullptr);

/// generate_batch for one prompt.
struct GenerationResult {
  std::vector<TokenId> tokens;
  double prefill_seconds = 0.0, decode_seconds = 0.0;
};
GenerationResult generate_tokens(const Decoder& model, const std::vector<TokenId>& prompt,
                                 const GenerateRequest& request, const std::vector<TokenId>& end_ids,
                                 const std::function<bool(TokenId)>& on_token);

/// Every id that ends a generation: those of config.json and the tokenizer's EOS.
std::vector<TokenId> end_ids_of(const Decoder& model, const Tokenizer& tokenizer);

}  // namespace dagmoe
