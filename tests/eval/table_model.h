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
  std::vector<std::string> rolling_texts;
  /// What is generated for a prompt; nothing for others.
  std::map<std::string, std::string> answers;
  std::vector<GenerateRequest> generate_requests;

  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> asked,
                                            const ResultHook<LogLikelihood>& on_result = {}) override {
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
      if (on_result) on_result(i, results.back());
    }
    return results;
  }

  /// One token a supervised byte, half a nat each.
  std::vector<SampleLoss> sample_loss(std::span<const SampleLossRequest> asked,
                                      const ResultHook<SampleLoss>& on_result = {}) override {
    loss_requests.assign(asked.begin(), asked.end());
    std::vector<SampleLoss> losses;
    for (const SampleLossRequest& request : asked) {
      SampleLoss loss;
      for (const PromptPiece& piece : request.pieces) {
        if (piece.is_supervised) loss.num_tokens += static_cast<std::int64_t>(piece.text.size());
      }
      loss.nats = 0.5 * static_cast<double>(loss.num_tokens);
      losses.push_back(loss);
      if (on_result) on_result(losses.size() - 1, loss);
    }
    return losses;
  }

  /// One token a byte, half a nat each.
  std::vector<LogLikelihood> rolling_log_likelihood(std::span<const std::string> texts,
                                                    const ResultHook<LogLikelihood>& on_result = {}) override {
    rolling_texts.assign(texts.begin(), texts.end());
    std::vector<LogLikelihood> results;
    for (const std::string& text : texts) {
      results.push_back(
          {.log_prob = -0.5 * static_cast<double>(text.size()), .num_tokens = static_cast<std::int64_t>(text.size())});
      if (on_result) on_result(results.size() - 1, results.back());
    }
    return results;
  }

  std::vector<std::string> generate(std::span<const GenerateRequest> asked,
                                    const ResultHook<std::string>& on_result = {}) override {
    generate_requests.assign(asked.begin(), asked.end());
    std::vector<std::string> texts;
    for (const GenerateRequest& request : asked) {
      const auto found = answers.find(request.prompt);
      texts.push_back(found == answers.end() ? "" : found->second);
      if (on_result) on_result(texts.size() - 1, texts.back());
    }
    return texts;
  }

  EngineCounts counts() const override { return {}; }
};

}  // namespace dagmoe
