#include <ATen/ATen.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "kernels/ops_support.h"

// Causal attention inside each segment. S: tokens of one segment; M = H / Hk query heads share a key head.

namespace dagmoe {
namespace ops {
namespace {

/// Tokens [begin, end) of one segment.
struct Segment {
  std::int64_t begin, size;
};

// The segment's rows of x.
at::Tensor rows_of(const at::Tensor& x_THd, Segment segment) { return x_THd.narrow(0, segment.begin, segment.size); }
// The same in float, whatever the activations are. LibTorch's kernel then works with MKL's products, which beat its
// bfloat16 ones at these sizes (30 segments of 130 tokens, Zen 4: backward 42 ms against 110) and cost nothing extra
// for a new length.
at::Tensor float_rows_of(const at::Tensor& x_THd, Segment segment) { return rows_of(x_THd, segment).to(at::kFloat); }

// LibTorch's kernel takes [batch, head, token, d]. The key heads serve as the batch, so that grouped-query attention
// needs no copy of k and v: the query heads of one group all see the same memory.
at::Tensor query_view_kMSd(const at::Tensor& q_SHd, std::int64_t num_kv_heads) {
  const std::int64_t S = q_SHd.size(0), H = q_SHd.size(1), d = q_SHd.size(2);
  return q_SHd.view({S, num_kv_heads, H / num_kv_heads, d}).permute({1, 2, 0, 3});
}
at::Tensor key_view_k1Sd(const at::Tensor& k_SHkd) { return k_SHkd.unsqueeze(2).permute({1, 2, 0, 3}); }

// One segment as LibTorch's kernel wants it.
struct SegmentViews {
  SegmentViews(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd, Segment segment)
      : q_kMSd(query_view_kMSd(float_rows_of(q_THd, segment), k_THkd.size(1))),
        k_kMSd(key_view_k1Sd(float_rows_of(k_THkd, segment)).expand_as(q_kMSd)),
        v_kMSd(key_view_k1Sd(float_rows_of(v_THkd, segment)).expand_as(q_kMSd)) {}
  at::Tensor q_kMSd, k_kMSd, v_kMSd;
};

// f(index, segment) for every segment that has tokens, spread over the threads; inside, LibTorch's kernel then runs on
// one thread. A single segment is spread by LibTorch's kernel itself.
template <class F>
void for_each_segment(const std::vector<std::int64_t>& offsets, F f) {
  at::parallel_for(0, static_cast<std::int64_t>(offsets.size()) - 1, 1, [&](std::int64_t first, std::int64_t last) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;  // other threads do not know that nothing is to be recorded
    for (auto index = static_cast<std::size_t>(first); index < static_cast<std::size_t>(last); ++index) {
      const Segment segment = {offsets[index], offsets[index + 1] - offsets[index]};
      if (segment.size > 0) f(index, segment);
    }
  });
}

struct AttentionResult {
  at::Tensor out_THd;
  std::vector<at::Tensor> logsumexp;  // one per segment
};

AttentionResult attention_forward(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                  const std::vector<std::int64_t>& offsets) {
  AttentionResult result = {at::empty(q_THd.sizes(), q_THd.options()), std::vector<at::Tensor>(offsets.size() - 1)};
  for_each_segment(offsets, [&](std::size_t index, Segment segment) {
    const SegmentViews in(q_THd, k_THkd, v_THkd, segment);
    auto [out_kMSd, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(in.q_kMSd, in.k_kMSd, in.v_kMSd,
                                                                                 /*dropout_p=*/0.0, /*is_causal=*/true);
    query_view_kMSd(rows_of(result.out_THd, segment), k_THkd.size(1)).copy_(out_kMSd);
    result.logsumexp[index] = logsumexp;
  });
  return result;
}

struct AttentionGradients {
  at::Tensor q_THd, k_THkd, v_THkd;
};

// saved: q, k, v, out, then the logsumexp of each segment.
AttentionGradients attention_backward(const variable_list& saved, const at::Tensor& grad_out_THd,
                                      const std::vector<std::int64_t>& offsets) {
  const at::Tensor &q_THd = saved[0], &k_THkd = saved[1], &v_THkd = saved[2], &out_THd = saved[3];
  const std::int64_t num_kv_heads = k_THkd.size(1);
  const AttentionGradients gradients = {at::empty(q_THd.sizes(), q_THd.options()),
                                        at::empty(k_THkd.sizes(), k_THkd.options()),
                                        at::empty(v_THkd.sizes(), v_THkd.options())};
  for_each_segment(offsets, [&](std::size_t index, Segment segment) {
    const SegmentViews in(q_THd, k_THkd, v_THkd, segment);
    const auto [grad_q, grad_k, grad_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        query_view_kMSd(float_rows_of(grad_out_THd, segment), num_kv_heads), in.q_kMSd, in.k_kMSd, in.v_kMSd,
        query_view_kMSd(float_rows_of(out_THd, segment), num_kv_heads), saved[4 + index],
        /*dropout_p=*/0.0, /*is_causal=*/true);
    query_view_kMSd(rows_of(gradients.q_THd, segment), num_kv_heads).copy_(grad_q);
    // A key head serves all query heads of its group.
    key_view_k1Sd(rows_of(gradients.k_THkd, segment)).copy_(grad_k.sum(1, /*keepdim=*/true));
    key_view_k1Sd(rows_of(gradients.v_THkd, segment)).copy_(grad_v.sum(1, /*keepdim=*/true));
  });
  return gradients;
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_THd, const at::Tensor& k_THkd,
                            const at::Tensor& v_THkd, const std::vector<std::int64_t>& offsets) {
    const AttentionResult result = attention_forward(q_THd, k_THkd, v_THkd, offsets);
    variable_list saved = {q_THd, k_THkd, v_THkd, result.out_THd};
    saved.insert(saved.end(), result.logsumexp.begin(), result.logsumexp.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["offsets"] = offsets;
    return result.out_THd;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto gradients = attention_backward(ctx->get_saved_variables(), grad_outputs[0].contiguous(),
                                              ctx->saved_data["offsets"].toIntVector());
    return {gradients.q_THd, gradients.k_THkd, gradients.v_THkd, {}};
  }
};

// On a GPU LibTorch chooses the kernel and knows its gradient.
at::Tensor attention_on_gpu(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                            const std::vector<std::int64_t>& offsets) {
  std::vector<at::Tensor> parts;
  for (std::size_t index = 0; index + 1 < offsets.size(); ++index) {
    const Segment segment = {offsets[index], offsets[index + 1] - offsets[index]};
    if (segment.size == 0) continue;
    const auto heads_first = [&](const at::Tensor& x_THd) {
      return rows_of(x_THd, segment).transpose(0, 1).unsqueeze(0);
    };
    const at::Tensor out_1HSd = at::scaled_dot_product_attention(
        heads_first(q_THd), heads_first(k_THkd), heads_first(v_THkd), {}, 0.0,
        /*is_causal=*/true, std::nullopt, /*enable_gqa=*/q_THd.size(1) != k_THkd.size(1));
    parts.push_back(out_1HSd.squeeze(0).transpose(0, 1));
  }
  return parts.empty() ? at::zeros_like(q_THd) : at::cat(parts);
}

// Segments longer than the window, block by block of queries; the mask of one block is all that exists of S x S.
at::Tensor windowed_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                              const std::vector<std::int64_t>& offsets, std::int64_t window) {
  constexpr std::int64_t kBlock = 512;
  const auto heads_first = [](const at::Tensor& x_SHd) { return x_SHd.transpose(0, 1).unsqueeze(0); };
  const auto long_options = q_THd.options().dtype(at::kLong).requires_grad(false);
  std::vector<at::Tensor> parts;
  for (std::size_t index = 0; index + 1 < offsets.size(); ++index) {
    for (std::int64_t begin = offsets[index]; begin < offsets[index + 1]; begin += kBlock) {
      const std::int64_t size = std::min(kBlock, offsets[index + 1] - begin);
      const std::int64_t first_key = std::max(offsets[index], begin - window + 1), num_keys = begin + size - first_key;
      const at::Tensor age = at::arange(begin, begin + size, long_options).unsqueeze(1) -
                             at::arange(first_key, first_key + num_keys, long_options).unsqueeze(0);
      const at::Tensor visible = at::logical_and(age >= 0, age < window);
      const at::Tensor out_1HSd = at::scaled_dot_product_attention(
          heads_first(rows_of(q_THd, {begin, size})), heads_first(rows_of(k_THkd, {first_key, num_keys})),
          heads_first(rows_of(v_THkd, {first_key, num_keys})), visible, 0.0, /*is_causal=*/false, std::nullopt,
          /*enable_gqa=*/q_THd.size(1) != k_THkd.size(1));
      parts.push_back(out_1HSd.squeeze(0).transpose(0, 1));
    }
  }
  return parts.empty() ? at::zeros_like(q_THd) : at::cat(parts).contiguous();
}

bool exceeds_window(const std::vector<std::int64_t>& offsets, std::int64_t window) {
  if (window == 0) return false;
  for (std::size_t index = 0; index + 1 < offsets.size(); ++index) {
    if (offsets[index + 1] - offsets[index] > window) return true;
  }
  return false;
}

void check_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                     const std::vector<std::int64_t>& offsets) {
  require_attention_shapes("segment_attention", q_THd, k_THkd, v_THkd);
  require(!offsets.empty() && offsets.front() == 0 && offsets.back() == q_THd.size(0) &&
              std::is_sorted(offsets.begin(), offsets.end()),
          "segment_attention: offsets must rise from 0 to the ", q_THd.size(0), " tokens");
}

at::Tensor with_unit_stride(const at::Tensor& x_THd) { return x_THd.stride(2) == 1 ? x_THd : x_THd.contiguous(); }

}  // namespace
}  // namespace ops

at::Tensor segment_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                             const std::vector<std::int64_t>& segment_offsets, std::int64_t window) {
  ops::check_attention(q_THd, k_THkd, v_THkd, segment_offsets);
  if (q_THd.scalar_type() == at::kDouble) {
    return segment_attention_reference(q_THd, k_THkd, v_THkd, segment_offsets, window);
  }
  if (ops::exceeds_window(segment_offsets, window)) {
    return ops::windowed_attention(q_THd, k_THkd, v_THkd, segment_offsets, window);
  }
  if (q_THd.is_cuda()) return ops::attention_on_gpu(q_THd, k_THkd, v_THkd, segment_offsets);
  const at::Tensor q = ops::with_unit_stride(q_THd), k = ops::with_unit_stride(k_THkd),
                   v = ops::with_unit_stride(v_THkd);
  if (!ops::needs_gradient({q, k, v})) return ops::attention_forward(q, k, v, segment_offsets).out_THd;
  return ops::AttentionFunction::apply(q, k, v, segment_offsets);
}

at::Tensor segment_attention_reference(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                       const std::vector<std::int64_t>& segment_offsets, std::int64_t window) {
  ops::check_attention(q_THd, k_THkd, v_THkd, segment_offsets);
  const std::int64_t num_tokens = q_THd.size(0), group = q_THd.size(1) / k_THkd.size(1);
  at::Tensor segment_of_T = at::zeros({num_tokens}, at::kLong);
  for (std::size_t i = 1; i + 1 < segment_offsets.size(); ++i) {
    segment_of_T.narrow(0, segment_offsets[i], num_tokens - segment_offsets[i]).add_(1);
  }
  segment_of_T = segment_of_T.to(q_THd.device());
  // visible[t, s]: token t may look at token s.
  at::Tensor visible_TT = (segment_of_T.unsqueeze(1) == segment_of_T.unsqueeze(0)).tril();
  if (window > 0) visible_TT = visible_TT.triu(1 - window);
  const auto dtype = ops::accumulate_dtype(q_THd.scalar_type());
  const at::Tensor q_HTd = q_THd.to(dtype).transpose(0, 1);
  const at::Tensor k_HTd = k_THkd.to(dtype).repeat_interleave(group, 1).transpose(0, 1);
  const at::Tensor v_HTd = v_THkd.to(dtype).repeat_interleave(group, 1).transpose(0, 1);
  const double scale = 1 / std::sqrt(static_cast<double>(q_THd.size(2)));
  const at::Tensor scores_HTT = (at::matmul(q_HTd, k_HTd.transpose(1, 2)) * scale)
                                    .masked_fill(visible_TT.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(at::softmax(scores_HTT, -1), v_HTd).transpose(0, 1).to(q_THd.scalar_type()).contiguous();
}

}  // namespace dagmoe
