#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "kernels/ops_attention_cpu.h"
#include "kernels/ops_support.h"

// Causal attention inside each segment. S: tokens of one segment; M = H / Hk query heads share a key head.

namespace dagmoe {
namespace ops {
namespace {

/// Tokens [begin, end) of one segment.
struct Segment {
  std::int64_t begin, size;
};

at::Tensor with_unit_stride(const at::Tensor& x_THd) { return x_THd.stride(2) == 1 ? x_THd : x_THd.contiguous(); }
at::Tensor rows_of(const at::Tensor& x_THd, Segment segment) { return x_THd.narrow(0, segment.begin, segment.size); }

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_THd, const at::Tensor& k_THkd,
                            const at::Tensor& v_THkd, const Segments& segments, std::int64_t window) {
    const SegmentAttentionResult result = attention_forward_cpu({q_THd, k_THkd, v_THkd, segments, window});
    ctx->save_for_backward({q_THd, k_THkd, v_THkd, result.out_THd, result.log_sum_exp_HkTM});
    ctx->saved_data["offsets"] = segments.offsets;
    ctx->saved_data["prefixes"] = segments.prefixes;
    ctx->saved_data["window"] = window;
    return result.out_THd;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const Segments segments(ctx->saved_data["offsets"].toIntVector(), ctx->saved_data["prefixes"].toIntVector());
    const auto gradients =
        attention_backward_cpu({saved[0], saved[1], saved[2], segments, ctx->saved_data["window"].toInt()},
                               {saved[3], saved[4]}, with_unit_stride(grad_outputs[0]));
    return {gradients.q_THd, gradients.k_THkd, gradients.v_THkd, {}, {}};
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

// The same for segments longer than the window, block by block of queries; the mask of one block is all that exists of
// S x S.
at::Tensor windowed_attention_on_gpu(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
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

// Sequence by sequence: prefixes are copied to each that goes on from them.
at::Tensor segments_on_gpu(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                           const Segments& segments, std::int64_t window) {
  if (segments.share_prefixes()) {
    const SpreadRows spread = spread_rows(segments);
    const at::Tensor rows = at::tensor(spread.rows, at::kLong).to(q_THd.device());
    const auto copies = [&](const at::Tensor& x_THd) { return x_THd.index_select(0, rows); };
    const at::Tensor out = segments_on_gpu(copies(q_THd), copies(k_THkd), copies(v_THkd), spread.offsets, window);
    return out.index_select(0, at::tensor(spread.own, at::kLong).to(q_THd.device()));
  }
  return exceeds_window(segments.offsets, window)
             ? windowed_attention_on_gpu(q_THd, k_THkd, v_THkd, segments.offsets, window)
             : attention_on_gpu(q_THd, k_THkd, v_THkd, segments.offsets);
}

void check_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                     const Segments& segments) {
  require_attention_shapes("segment_attention", q_THd, k_THkd, v_THkd);
  check_segments("segment_attention", segments, q_THd.size(0));
}

// position_T: of each row within its sequence; segment_T: which segment it belongs to; prefix_T: which one that goes on
// from, -1: none.
struct RowPlaces {
  explicit RowPlaces(const Segments& segments) {
    std::vector<std::int64_t> position, segment, prefix;
    for (std::size_t s = 0; s < segments.count(); ++s) {
      const std::int64_t before = segments.prefix(s);
      const std::int64_t first = before >= 0 ? segments.size(static_cast<std::size_t>(before)) : 0;
      for (std::int64_t i = 0; i < segments.size(s); ++i) {
        position.push_back(first + i);
        segment.push_back(static_cast<std::int64_t>(s));
        prefix.push_back(before);
      }
    }
    position_T = at::tensor(position, at::kLong);
    segment_T = at::tensor(segment, at::kLong);
    prefix_T = at::tensor(prefix, at::kLong);
  }
  // [t, s]: whether row t may look at row s.
  at::Tensor visible(std::int64_t window) const {
    const at::Tensor age_TT = position_T.unsqueeze(1) - position_T.unsqueeze(0);
    const at::Tensor same_TT = at::logical_or(segment_T.unsqueeze(1) == segment_T.unsqueeze(0),
                                              prefix_T.unsqueeze(1) == segment_T.unsqueeze(0));
    const at::Tensor visible_TT = at::logical_and(same_TT, age_TT >= 0);
    return window > 0 ? at::logical_and(visible_TT, age_TT < window) : visible_TT;
  }
  at::Tensor position_T, segment_T, prefix_T;
};

}  // namespace
}  // namespace ops

at::Tensor segment_attention(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                             const Segments& segments, std::int64_t window) {
  ops::check_attention(q_THd, k_THkd, v_THkd, segments);
  if (q_THd.scalar_type() == at::kDouble) return segment_attention_reference(q_THd, k_THkd, v_THkd, segments, window);
  if (q_THd.is_cuda()) return ops::segments_on_gpu(q_THd, k_THkd, v_THkd, segments, window);
  const at::Tensor q = ops::with_unit_stride(q_THd), k = ops::with_unit_stride(k_THkd),
                   v = ops::with_unit_stride(v_THkd);
  if (!ops::needs_gradient({q, k, v})) return ops::attention_forward_cpu({q, k, v, segments, window}).out_THd;
  return ops::AttentionFunction::apply(q, k, v, segments, window);
}

at::Tensor segment_attention_reference(const at::Tensor& q_THd, const at::Tensor& k_THkd, const at::Tensor& v_THkd,
                                       const Segments& segments, std::int64_t window) {
  ops::check_attention(q_THd, k_THkd, v_THkd, segments);
  const std::int64_t group = q_THd.size(1) / k_THkd.size(1);
  const at::Tensor visible_TT = ops::RowPlaces(segments).visible(window).to(q_THd.device());
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
