#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// What log-softmax and argmax of N rows of logits over V classes need: log_prob[v] = logit[v] - log_sum_exp. The first
/// of equal logits is the argmax; a row with a NaN has NaN as its sum.
template <class T>
struct LogSumExp {
  std::int64_t N, V;
  const T* logits_NV;
  double* log_sum_exp_N;
  std::int64_t* argmax_N;
};

/// The softmax of attention scores, up to the division: rows are `num_queries` tokens times `heads_per_query`, C
/// columns are the positions 0 .. C-1 of the sequence. Query i stands at position first_position + i and sees that many
/// positions and its own; with a window above 0 only the last `window` of these.
///   scores <- exp(score - largest of the row) where seen, 0 elsewhere;  sum_N: the sum of each row
struct AttentionSoftmax {
  std::int64_t num_queries, heads_per_query, C, first_position, window;
  float* scores_NC;
  float* sum_N;
};

/// Columns [first, end) that query i sees.
struct SeenColumns {
  std::int64_t first, end;
};
constexpr SeenColumns seen_columns(const AttentionSoftmax& args, std::int64_t query) {
  const std::int64_t end = args.first_position + query + 1;
  return {args.window > 0 && end > args.window ? end - args.window : 0, end};
}

}  // namespace dagmoe
