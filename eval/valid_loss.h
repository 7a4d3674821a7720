#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/example.h"
#include "eval/language_model.h"
#include "eval/token_scores.h"
#include "model/decoder.h"

namespace dagmoe {

/// Nats of each example's supervised tokens, by score_tokens. An example without a target scores 0 over 0 tokens.
std::vector<SampleLoss> example_losses(const Decoder& model, std::span<const Example> examples,
                                       std::int64_t max_batch_tokens, const ResultHook<SampleLoss>& on_result = {},
                                       ScoringWork* work = nullptr);

/// Loss over all supervised tokens, nats per token: sum of nats / sum of tokens, so that long answers count as in
/// training.
struct MeanLoss {
  double value = 0.0;
  double standard_error = 0.0;  ///< of this ratio, with documents as the independent draws; NaN for fewer than two
  std::int64_t num_tokens = 0;
};
/// Throws NumericsError when there is no supervised token or a loss is not finite.
MeanLoss mean_loss(std::span<const SampleLoss> losses);

}  // namespace dagmoe
