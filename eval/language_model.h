#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/prompt_template.h"

namespace dagmoe {

/// log P(continuation | context). The space between the two belongs to the continuation.
struct LogLikelihoodRequest {
  std::string context, continuation;  ///< empty context: the prefix token (bos, else eos)
};
struct LogLikelihood {
  double log_prob = 0.0;         ///< nats, summed over the continuation's tokens
  bool is_greedy = false;        ///< every token was the argmax
  std::int64_t num_tokens = 0;   ///< of the continuation
  bool merged_boundary = false;  ///< a token spans the border, so the context's ids do not begin the whole text's
  bool truncated = false;        ///< the context lost its first tokens
};

/// A training sample whose supervised tokens are scored.
struct SampleLossRequest {
  std::vector<PromptPiece> pieces;
  std::int64_t max_tokens = 0;  ///< what is longer loses its end; 0: the model's own maximum
};
struct SampleLoss {
  double nats = 0.0;            ///< negative log-likelihood, summed over the supervised tokens
  std::int64_t num_tokens = 0;  ///< supervised ones
  bool truncated = false;
};

struct GenerateRequest {
  std::string prompt = {};
  std::vector<std::string> stop = {};
  std::int64_t max_new_tokens = 256;
  double temperature = 0.0;  ///< 0: greedy
  double top_p = 1.0;
  std::uint64_t seed = 0;
};

/// What answering took: the work itself, to be compared with what was asked for.
struct EngineCounts {
  std::int64_t tokens_requested = 0;  ///< model inputs of all requests, each alone
  std::int64_t tokens_computed = 0;   ///< that went through the layers
  std::int64_t rows_scored = 0;       ///< positions whose logits were formed
  double seconds = 0.0;               ///< inside the model: without reading, rendering and tokenising
};

/// A request that cannot be scored: "request 12: the continuation has no tokens". Its index is what a task turns into a
/// document and a line.
class RequestError : public InputError {
 public:
  RequestError(std::size_t request_index, const std::string& why)
      : InputError("request " + std::to_string(request_index) + ": " + why), index(request_index), reason(why) {}
  std::size_t index;
  std::string reason;
};

/// Gets each result once, as soon as it is final, in any order; empty: nobody asks. What it throws ends the evaluation.
template <class Result>
using ResultHook = std::function<void(std::size_t request_index, const Result& result)>;

/// All that a task needs of a model. Results are in request order and, in fp32, independent of batching within 1e-4
/// nats. A request that cannot be scored (an empty continuation, a context without tokens) throws RequestError.
class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  virtual std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> requests,
                                                    const ResultHook<LogLikelihood>& on_result = {}) = 0;
  /// log P of whole texts, each token once, in windows of the model's length (contracts.md 4.1 rule 8). Empty text: 0.
  virtual std::vector<LogLikelihood> rolling_log_likelihood(std::span<const std::string> texts,
                                                            const ResultHook<LogLikelihood>& on_result = {}) = 0;
  virtual std::vector<SampleLoss> sample_loss(std::span<const SampleLossRequest> requests,
                                              const ResultHook<SampleLoss>& on_result = {}) = 0;
  /// Texts without their prompts, cut before the first stop string.
  virtual std::vector<std::string> generate(std::span<const GenerateRequest> requests,
                                            const ResultHook<std::string>& on_result = {}) = 0;
  /// What has been computed so far.
  virtual EngineCounts counts() const = 0;
};

}  // namespace dagmoe
