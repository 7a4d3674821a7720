#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "eval/language_model.h"
#include "model/decoder.h"

namespace dagmoe {

struct RunnerOptions {
  std::int64_t max_batch_tokens = 2048;  ///< tokens of one forward pass
  std::int64_t max_length = 0;           ///< 0: the config's max_position_embeddings
};

/// A context and a continuation as ids, split as lm-evaluation-harness 0.4.13 does (contracts.md 4.1 rules 1-5). The
/// model's input is context + continuation without the last id; both together have at most max_length + 1 ids.
struct EncodedRequest {
  std::vector<TokenId> context, continuation;
  bool merged_boundary = false, truncated = false;  ///< as in LogLikelihood
};
/// Throws InputError with the reason only: "the continuation has no tokens".
EncodedRequest encode_request(const Tokenizer& tokenizer, const LogLikelihoodRequest& request, std::int64_t max_length);

/// Predicts tokens [begin, end) of a text. Position i of its input is what stands before token i, so that the input is
/// the prefix token and the text's, from context_begin to end - 1, and never longer than the model's maximum.
struct RollingWindow {
  std::size_t begin = 0, end = 0, context_begin = 0;
};
/// Every token once (contracts.md 4.1 rule 8): the first window takes max_length tokens; later ones too, behind one
/// token of context; the last one is filled up with context.
std::vector<RollingWindow> rolling_windows(std::size_t num_tokens, std::size_t max_length);

/// Scores text with a decoder. Requests whose inputs are the same ids, such as one-token choices after one context,
/// share one pass; everything else is computed on its own.
class ModelRunner : public LanguageModel {
 public:
  ModelRunner(const Decoder& model, const Tokenizer& tokenizer, RunnerOptions options = {});
  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> requests,
                                            const ResultHook<LogLikelihood>& on_result = {}) override;
  std::vector<LogLikelihood> rolling_log_likelihood(std::span<const std::string> texts,
                                                    const ResultHook<LogLikelihood>& on_result = {}) override;
  std::vector<SampleLoss> sample_loss(std::span<const SampleLossRequest> requests,
                                      const ResultHook<SampleLoss>& on_result = {}) override;
  /// One request after another. A prompt of more than max_length - max_new_tokens tokens loses its first ones.
  std::vector<std::string> generate(std::span<const GenerateRequest> requests,
                                    const ResultHook<std::string>& on_result = {}) override;
  EngineCounts counts() const override { return counts_; }

 private:
  const Decoder& model_;
  const Tokenizer& tokenizer_;
  RunnerOptions options_;
  EngineCounts counts_;
};

/// One continuation of `prompt`; on_token gets the ids as they come and ends the generation by returning false. Ends at
/// any of `end_ids` (which is not returned) and after max_new_tokens. Of the request only max_new_tokens, temperature,
/// top_p and seed count: stop strings are found in text, by TextStream (eval/text_stream.h) inside on_token.
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
