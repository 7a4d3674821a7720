#include <algorithm>
#include <cmath>

#include "kernels/element_convert.h"
#include "kernels/reference.h"
#include "kernels/segment_attention.h"

namespace dagmoe::reference {

void small_product(const SmallProduct& args) {
  for (std::int64_t i = 0; i < args.m; ++i) {
    for (std::int64_t j = 0; j < args.n; ++j) {
      float* c = args.c_mn + i * args.c_stride + j;
      double sum = args.is_added ? *c : 0.0;
      for (std::int64_t p = 0; p < args.k; ++p)
        sum += static_cast<double>(args.a[i * args.a_row + p * args.a_column]) * args.b_kn[p * args.b_stride + j];
      *c = static_cast<float>(sum);
    }
  }
}

void transpose(const Transpose& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    for (std::int64_t c = 0; c < args.C; ++c)
      args.to_CN[c * args.to_stride + n] = args.from_NC[n * args.from_stride + c];
  }
}

template <class T>
void row_dots(const RowDots<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    double sum = 0;
    for (std::int64_t i = 0; i < args.d; ++i) {
      sum += static_cast<double>(to_accumulate(args.a_Nd[n * args.a_stride + i])) *
             static_cast<double>(to_accumulate(args.b_Nd[n * args.b_stride + i]));
    }
    args.dot_N[n] = static_cast<float>(sum);
  }
}

template void row_dots(const RowDots<float>&);
template void row_dots(const RowDots<Bf16>&);
template void row_dots(const RowDots<double>&);

void attention_weights(const AttentionWeights& args) {
  const AttentionBlock& block = args.block;
  for (std::int64_t r = 0; r < block.R; ++r) {
    float* weights = args.weights_CR + r;
    const SeenRange seen = keys_seen_by(block, r);
    const double old_top = args.top_R[r];
    double top = old_top, sum = 0;
    for (std::int64_t c = seen.begin; c < seen.end; ++c) top = std::max<double>(top, weights[c * args.stride]);
    for (std::int64_t c = 0; c < block.C; ++c) {
      const bool is_seen = c >= seen.begin && c < seen.end;
      const double weight = is_seen ? std::exp(weights[c * args.stride] - top) : 0.0;
      weights[c * args.stride] = static_cast<float>(weight);
      sum += weight;
    }
    const double factor = std::exp(old_top - top);
    args.top_R[r] = static_cast<float>(top);
    args.sum_R[r] = static_cast<float>(args.sum_R[r] * factor + sum);
    args.factor_R[r] = static_cast<float>(factor);
  }
}

void attention_slopes(const AttentionSlopes& args) {
  const AttentionBlock& block = args.block;
  for (std::int64_t c = 0; c < block.C; ++c) {
    const SeenRange seen = rows_seeing(block, c);
    for (std::int64_t r = 0; r < block.R; ++r) {
      float &weight = args.weights_CR[c * args.stride + r], &slope = args.slopes_CR[c * args.stride + r];
      const bool is_seen = r >= seen.begin && r < seen.end;
      const double exact = is_seen ? std::exp(static_cast<double>(weight) - args.log_sum_exp_R[r]) : 0.0;
      weight = static_cast<float>(exact);
      slope = is_seen ? static_cast<float>(exact * (static_cast<double>(slope) - args.delta_R[r])) : 0.0F;
    }
  }
}

}  // namespace dagmoe::reference
