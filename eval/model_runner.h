#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizer.h"
#include "eval/language_model.h"
#include "model/decoder.h"

namespace dagmoe {

struct RunnerOptions {
  std::int64_t max_batch_tokens = 2048;  ///< tokens of one forward pass
  std::int64_t max_length = 0;           ///< 0: the config's max_position_embeddings
};

/// A context and a continuation as ids, split as lm-evaluation-harness 0.4.13 does (contracts.md 4.1 rules 1-5).
struct EncodedRequest {
  std::vector<TokenId> context, continuation;
};
EncodedRequest encode_request(const Tokenizer& tokenizer, const LogLikelihoodRequest& request, std::int64_t max_length);

/// Scores text with a decoder. Requests that share their context's tokens are scored from one pass over the context.
class ModelRunner : public LanguageModel {
 public:
  ModelRunner(const Decoder& model, const Tokenizer& tokenizer, RunnerOptions options = {});
  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> requests, const ProgressHook& on_progress) override;
  std::vector<std::string> generate(std::span<const GenerateRequest> requests) override;

 private:
  const Decoder& model_;
  const Tokenizer& tokenizer_;
  RunnerOptions options_;
};

/// One continuation of `prompt`; on_token gets the ids as they come. Ends at any eos id (not returned), at a stop string, or
/// after max_new_tokens.
struct GenerationResult {
  std::vector<TokenId> tokens;
  double prefill_seconds = 0.0, decode_seconds = 0.0;
};
GenerationResult generate_tokens(const Decoder& model, const std::vector<TokenId>& prompt, const GenerateRequest& request,
                                 const std::vector<TokenId>& end_ids, const std::function<bool(TokenId)>& on_token);

}  // namespace dagmoe
