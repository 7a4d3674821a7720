#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/element_convert.h"
#include "kernels/reference.h"

namespace dagmoe::reference {

template <class T>
void log_sum_exp(const LogSumExp<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T* logits_V = args.logits_NV + n * args.V;
    std::int64_t best = 0;
    for (std::int64_t v = 1; v < args.V; ++v) {
      if (to_accumulate(logits_V[v]) > to_accumulate(logits_V[best])) best = v;
    }
    const double largest = to_accumulate(logits_V[best]);
    double sum = 0;
    for (std::int64_t v = 0; v < args.V; ++v) sum += std::exp(to_accumulate(logits_V[v]) - largest);
    args.log_sum_exp_N[n] = largest + std::log(sum);
    args.argmax_N[n] = best;
  }
}

template void log_sum_exp(const LogSumExp<float>&);
template void log_sum_exp(const LogSumExp<Bf16>&);
template void log_sum_exp(const LogSumExp<double>&);

void attention_softmax(const AttentionSoftmax& args) {
  for (std::int64_t row = 0; row < args.num_queries * args.heads_per_query; ++row) {
    float* scores_C = args.scores_NC + row * args.C;
    const SeenColumns seen = seen_columns(args, row / args.heads_per_query);
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::int64_t c = seen.first; c < seen.end; ++c) largest = std::max<double>(largest, scores_C[c]);
    for (std::int64_t c = 0; c < args.C; ++c) {
      const bool is_seen = c >= seen.first && c < seen.end;
      const double weight = is_seen ? std::exp(scores_C[c] - largest) : 0.0;
      scores_C[c] = static_cast<float>(weight);
      sum += weight;
    }
    args.sum_N[row] = static_cast<float>(sum);
  }
}

}  // namespace dagmoe::reference
