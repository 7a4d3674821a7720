#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/segments.h"

namespace dagmoe::ops {

/// Causal attention inside each segment on the CPU, for float and bfloat16, after FlashAttention (Dao et al. 2022):
/// scores exist for one block of queries and keys at a time, and in float. Tensors have unit stride in the last
/// dimension; results are the same for any number of threads.
struct SegmentAttention {
  at::Tensor q_THd, k_THkd, v_THkd;
  Segments segments;
  std::int64_t window;  ///< 0: none
};

struct SegmentAttentionResult {
  at::Tensor out_THd;
  at::Tensor log_sum_exp_HkTM;  ///< of each query's scores, float; M query heads share a key head
};
SegmentAttentionResult attention_forward_cpu(const SegmentAttention& attention);

struct SegmentAttentionGradients {
  at::Tensor q_THd, k_THkd, v_THkd;
};
SegmentAttentionGradients attention_backward_cpu(const SegmentAttention& attention,
                                                 const SegmentAttentionResult& result, const at::Tensor& grad_out_THd);

}  // namespace dagmoe::ops
