#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// Cross entropy of N rows of logits over V classes, and its gradient in place. With a label smoothing of eps and p =
/// softmax(logits_n):
///   loss_n    = -log p[target_n]
///   uniform_n = -(1/V) sum_v log p[v]                          where uniform_N is not null
///   logits_n <- (p - (1 - eps) onehot(target_n) - eps / V) * scale, the gradient of (1 - eps) loss_n + eps uniform_n
/// Sums in the accumulate type. With `keep_logits` the rows stay as they are (evaluation).
template <class T>
struct CrossEntropy {
  std::int64_t N, V;
  T* logits_NV;
  const std::int64_t* target_N;
  double scale;
  double label_smoothing = 0.0;
  bool keep_logits = false;
  double* loss_N = nullptr;
  double* uniform_N = nullptr;
};

}  // namespace dagmoe
