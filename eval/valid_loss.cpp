#include "eval/valid_loss.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

std::vector<SampleLoss> example_losses(const Decoder& model, std::span<const Example> examples,
                                       std::int64_t max_batch_tokens, const ResultHook<SampleLoss>& on_result,
                                       ScoringWork* work) {
  std::vector<ScoringSequence> sequences(examples.size());
  for (std::size_t e = 0; e < examples.size(); ++e) {
    const auto& [tokens, loss_mask, line, truncated] = examples[e];
    if (tokens.empty()) continue;
    sequences[e].input.assign(tokens.begin(), tokens.end() - 1);
    // Token i is predicted at position i - 1; the first token is predicted nowhere.
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      if (loss_mask[i] != 0) sequences[e].targets.push_back({static_cast<std::int64_t>(i) - 1, tokens[i]});
    }
  }
  std::vector<SampleLoss> losses(examples.size());
  const auto finish = [&](std::size_t e, const std::vector<TokenScore>& scores) {
    for (const TokenScore& score : scores) losses[e].nats -= score.log_prob;
    losses[e].num_tokens = static_cast<std::int64_t>(scores.size());
    losses[e].truncated = examples[e].truncated;
    if (on_result) on_result(e, losses[e]);
  };
  score_tokens(model, sequences, max_batch_tokens, finish, work);
  return losses;
}

MeanLoss mean_loss(std::span<const SampleLoss> losses) {
  double nats = 0.0;
  MeanLoss result;
  for (const SampleLoss& loss : losses) {
    nats += loss.nats;
    result.num_tokens += loss.num_tokens;
  }
  if (result.num_tokens == 0) throw NumericsError("the loss of no supervised token is not defined");
  if (!std::isfinite(nats)) throw NumericsError(str("the loss is ", nats));
  const auto num_tokens = static_cast<double>(result.num_tokens);
  result.value = nats / num_tokens;

  // Standard error of a ratio estimator (Cochran, Sampling Techniques, section 6.4).
  const auto n = static_cast<double>(losses.size());
  double squares = 0.0;
  for (const SampleLoss& loss : losses) {
    const double residual = loss.nats - result.value * static_cast<double>(loss.num_tokens);
    squares += residual * residual;
  }
  result.standard_error =
      losses.size() < 2 ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(squares * n / (n - 1.0)) / num_tokens;
  return result;
}

}  // namespace dagmoe
