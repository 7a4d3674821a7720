#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/tokenizer.h"
#include "model/decoder.h"

namespace dagmoe {

/// What the model is asked at one position of a sequence: the log-probability of `token` coming next. A position may be
/// asked for several tokens.
struct TokenTarget {
  std::int64_t position = 0;
  TokenId token = 0;
};
struct TokenScore {
  double log_prob = 0.0;   ///< nats; the softmax is in float whatever the activations are
  bool is_greedy = false;  ///< the token is the argmax
};
/// One pass over `input` answers all its targets.
struct ScoringSequence {
  std::vector<TokenId> input;
  std::vector<TokenTarget> targets;
};

/// What scoring took.
struct ScoringWork {
  std::int64_t tokens = 0;  ///< that went through the layers
  std::int64_t rows = 0;    ///< whose logits were formed
};

/// Scores every target: result[s][i] belongs to sequences[s].targets[i]. What sequences share at their beginnings is
/// computed once (prefix_tree.h), passes have at most `max_batch_tokens` tokens and no padding, and logits exist for
/// targets' positions only, a few hundred at a time. `on_sequence` gets the number of each sequence when its scores are
/// final. No gradients.
std::vector<std::vector<TokenScore>> score_tokens(
    const Decoder& model, std::span<const ScoringSequence> sequences, std::int64_t max_batch_tokens,
    const std::function<void(std::size_t sequence, const std::vector<TokenScore>& scores)>& on_sequence = {},
    ScoringWork* work = nullptr);

}  // namespace dagmoe
