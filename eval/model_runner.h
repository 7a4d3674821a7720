#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "eval/language_model.h"
#include "eval/token_scores.h"
#include "model/decoder.h"

namespace dagmoe {

struct RunnerOptions {
  std::int64_t max_batch_tokens = 0;   ///< tokens of one forward pass; 0: found from memory
  std::int64_t max_cached_tokens = 0;  ///< of prompts and answers that are generated at once; 0: found from memory
  std::int64_t max_length = 0;         ///< 0: the config's max_position_embeddings
  std::optional<bool> add_bos = {};    ///< absent: as the tokenizer does
};

/// The options with the token budgets filled in: an eighth of the available memory each for the activations of a pass
/// and for cached keys and values, within bounds beyond which more gains nothing.
RunnerOptions with_budgets(RunnerOptions options, const ModelConfig& config, std::int64_t element_bytes,
                           std::int64_t available_bytes);

/// A context and a continuation as ids, split as lm-evaluation-harness 0.4.13 does (contracts.md 4.1 rules 1-5). The
/// model's input is context + continuation without the last id; both together have at most max_length + 1 ids.
struct EncodedRequest {
  std::vector<TokenId> context, continuation;
  bool merged_boundary = false, truncated = false;  ///< as in LogLikelihood
};
/// Throws InputError with the reason only: "the continuation has no tokens".
EncodedRequest encode_request(const Tokenizer& tokenizer, const LogLikelihoodRequest& request, std::int64_t max_length,
                              std::optional<bool> add_bos = {});

/// Predicts tokens [begin, end) of a text. Position i of its input is what stands before token i, so that the input is
/// the prefix token and the text's, from context_begin to end - 1, and never longer than the model's maximum.
struct RollingWindow {
  std::size_t begin = 0, end = 0, context_begin = 0;
};
/// Every token once (contracts.md 4.1 rule 8): the first window takes max_length tokens; later ones too, behind one
/// token of context; the last one is filled up with context.
std::vector<RollingWindow> rolling_windows(std::size_t num_tokens, std::size_t max_length);

/// Scores text with a decoder. What requests share at their beginnings, such as examples, a question and its choices,
/// is computed once.
class ModelRunner : public LanguageModel {
 public:
  ModelRunner(const Decoder& model, const Tokenizer& tokenizer, RunnerOptions options = {});
  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> requests,
                                            const ResultHook<LogLikelihood>& on_result = {}) override;
  std::vector<LogLikelihood> rolling_log_likelihood(std::span<const std::string> texts,
                                                    const ResultHook<LogLikelihood>& on_result = {}) override;
  std::vector<SampleLoss> sample_loss(std::span<const SampleLossRequest> requests,
                                      const ResultHook<SampleLoss>& on_result = {}) override;
  /// By continuous batching (generation.h). A prompt of more than max_length - max_new_tokens tokens loses its first
  /// ones.
  std::vector<std::string> generate(std::span<const GenerateRequest> requests,
                                    const ResultHook<std::string>& on_result = {}) override;
  EngineCounts counts() const override { return counts_; }
  /// With the budgets that were found.
  const RunnerOptions& options() const { return options_; }

 private:
  void score(std::span<const ScoringSequence> sequences,
             const std::function<void(std::size_t, const std::vector<TokenScore>&)>& on_sequence);
  /// Adds up the windows of each text: those of text t are windows [end_of_text[t - 1], end_of_text[t]).
  void score_windows(std::span<const ScoringSequence> windows, std::span<const std::size_t> end_of_text,
                     std::span<LogLikelihood> results, const ResultHook<LogLikelihood>& on_result);
  void add_counts(std::span<const ScoringSequence> sequences, const ScoringWork& work,
                  std::chrono::steady_clock::time_point start);

  const Decoder& model_;
  const Tokenizer& tokenizer_;
  RunnerOptions options_;
  EngineCounts counts_;
};

}  // namespace dagmoe
