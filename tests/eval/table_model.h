// A language model that is a table: log-likelihoods by continuation, recorded requests, no weights.
#pragma once
#include <map>
#include <span>
#include <string>
#include <vector>

#include "eval/language_model.h"

namespace dagmoe {

class TableModel : public LanguageModel {
 public:
  /// What a continuation scores; others score -10.
  std::map<std::string, double> log_probs;
  std::vector<LogLikelihoodRequest> requests;
  std::vector<SampleLossRequest> loss_requests;

  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> asked,
                                            const ProgressHook& on_progress) override {
    requests.assign(asked.begin(), asked.end());
    std::vector<LogLikelihood> results;
    for (std::size_t i = 0; i < asked.size(); ++i) {
      if (asked[i].continuation.ends_with("UNSCORABLE")) throw RequestError(i, "the continuation has no tokens");
      const auto found = log_probs.find(asked[i].continuation);
      const double log_prob = found == log_probs.end() ? -10.0 : found->second;
      results.push_back({.log_prob = log_prob,
                         .is_greedy = log_prob > -0.5,
                         .num_tokens = 1,
                         .merged_boundary = asked[i].continuation.ends_with("MERGED"),
                         .truncated = asked[i].continuation.ends_with("LONG")});
      if (on_progress) on_progress(static_cast<std::int64_t>(i) + 1, static_cast<std::int64_t>(asked.size()));
    }
    return results;
  }

  /// One token a supervised byte, half a nat each.
  std::vector<SampleLoss> sample_loss(std::span<const SampleLossRequest> asked, const ProgressHook&) override {
    loss_requests.assign(asked.begin(), asked.end());
    std::vector<SampleLoss> losses;
    for (const SampleLossRequest& request : asked) {
      SampleLoss loss;
      for (const PromptPiece& piece : request.pieces) {
        if (piece.is_supervised) loss.num_tokens += static_cast<std::int64_t>(piece.text.size());
      }
      loss.nats = 0.5 * static_cast<double>(loss.num_tokens);
      losses.push_back(loss);
    }
    return losses;
  }

  std::vector<std::string> generate(std::span<const GenerateRequest> asked) override {
    return std::vector<std::string>(asked.size());
  }
};

}  // namespace dagmoe
