#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// Cross entropy of N rows of logits over V classes, and its gradient in place:
///   loss_n = logsumexp(logits_n) - logits_n[target_n];   logits_n <- (softmax(logits_n) - onehot(target_n)) * scale
/// Sums in the accumulate type. With `keep_logits` the rows stay as they are (evaluation).
template <class T>
struct CrossEntropy {
  std::int64_t N, V;
  T* logits_NV;
  const std::int64_t* target_N;
  double scale;
  bool keep_logits;
  double* loss_N;
};

}  // namespace dagmoe
