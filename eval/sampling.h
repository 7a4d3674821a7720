#pragma once

#include <cstdint>
#include <span>

#include "data/tokenizer.h"
#include "eval/language_model.h"

namespace dagmoe {

/// Draws the tokens of one answer from the smallest set of most likely ones whose probabilities reach top_p
/// (arXiv:1904.09751), by a random stream of its own.
class TokenSampler {
 public:
  /// Of the request temperature (above 0), top_p and seed count.
  explicit TokenSampler(const GenerateRequest& request);
  TokenId next(std::span<const float> logits_V);

 private:
  double uniform();
  double temperature_, top_p_;
  std::uint64_t state_;
};

}  // namespace dagmoe
