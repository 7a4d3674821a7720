#include "kernels/ops.h"

#include <ATen/ATen.h>

#include "kernels/cuda_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/ops_support.h"

// RMSNorm, RoPE, SwiGLU and the DAG's pair step. Each has a plain pair of functions, forward and backward, and a
// Function that wires them into autograd. Inside them every tensor is contiguous; the public functions see to that.

namespace dagmoe {
namespace ops {
namespace {

// ---- RMSNorm

struct RmsNormResult {
  at::Tensor y_XD, rstd_N;
};

RmsNormResult rms_norm_forward(const at::Tensor& x_XD, const at::Tensor& weight_D, double eps) {
  const std::int64_t D = weight_D.size(0), N = x_XD.numel() / D;
  const at::Tensor y_XD = at::empty_like(x_XD), rstd_N = at::empty({N}, weight_D.options());
  with_element(x_XD.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    using Real = Accumulate<T>;
    const RmsNormForward<T> all = {.N = N,
                                   .D = D,
                                   .eps = eps,
                                   .x_ND = input<T>(x_XD),
                                   .weight_D = input<Real>(weight_D),
                                   .y_ND = output<T>(y_XD),
                                   .rstd_N = output<Real>(rstd_N)};
    if (launched_on_cuda(x_XD, [&](auto stream) { cuda::rms_norm_forward(all, stream); })) return;
    parallel_rows(N, D, [&](std::int64_t begin, std::int64_t end) {
      RmsNormForward<T> part = all;
      part.N = end - begin;
      part.x_ND += begin * D;
      part.y_ND += begin * D;
      part.rstd_N += begin;
      kernels<T>().rms_norm_forward(part);
    });
  });
  return {y_XD, rstd_N};
}

struct RmsNormGradients {
  at::Tensor x_XD, weight_D;  // undefined when not wanted
};

// `weight_D` may be undefined when grad_x is not wanted.
RmsNormGradients rms_norm_backward(const at::Tensor& x_XD, const at::Tensor& weight_D, const at::Tensor& rstd_N,
                                   const at::Tensor& grad_y_XD, bool wants_x, bool wants_weight) {
  // The rows are summed in blocks whose number depends on the shape alone, so that the thread count moves no digit.
  constexpr std::int64_t kMaxBlocks = 16, kMinRowsPerBlock = 64;
  const std::int64_t D = x_XD.size(-1), N = rstd_N.numel();
  const std::int64_t num_blocks = std::clamp<std::int64_t>(N / kMinRowsPerBlock, 1, kMaxBlocks);
  const std::int64_t rows_per_block = (N + num_blocks - 1) / num_blocks;
  RmsNormGradients gradients;
  at::Tensor partial_BD;
  if (wants_x) gradients.x_XD = at::empty_like(x_XD);
  if (wants_weight) partial_BD = at::zeros({x_XD.is_cuda() ? 1 : num_blocks, D}, rstd_N.options());
  with_element(x_XD.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    using Real = Accumulate<T>;
    const RmsNormBackward<T> all = {.N = N,
                                    .D = D,
                                    .x_ND = input<T>(x_XD),
                                    .weight_D = wants_x ? input<Real>(weight_D) : nullptr,
                                    .rstd_N = input<Real>(rstd_N),
                                    .grad_y_ND = input<T>(grad_y_XD),
                                    .grad_x_ND = output<T>(gradients.x_XD),
                                    .grad_weight_D = output<Real>(partial_BD)};
    if (launched_on_cuda(x_XD, [&](auto stream) { cuda::rms_norm_backward(all, stream); })) return;
    at::parallel_for(0, num_blocks, 1, [&](std::int64_t first_block, std::int64_t last_block) {
      for (std::int64_t block = first_block; block < last_block; ++block) {
        const std::int64_t begin = std::min(N, block * rows_per_block), end = std::min(N, begin + rows_per_block);
        RmsNormBackward<T> part = all;
        part.N = end - begin;
        part.x_ND += begin * D;
        part.rstd_N += begin;
        part.grad_y_ND += begin * D;
        if (wants_x) part.grad_x_ND += begin * D;
        if (wants_weight) part.grad_weight_D += block * D;
        kernels<T>().rms_norm_backward(part);
      }
    });
  });
  if (wants_weight) {
    gradients.weight_D = partial_BD[0];
    for (std::int64_t block = 1; block < partial_BD.size(0); ++block) gradients.weight_D.add_(partial_BD[block]);
  }
  return gradients;
}

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_XD, const at::Tensor& weight_D, double eps) {
    const RmsNormResult result = rms_norm_forward(x_XD, weight_D, eps);
    ctx->save_for_backward({x_XD, x_XD.requires_grad() ? weight_D : at::Tensor(), result.rstd_N});
    return result.y_XD;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto gradients = rms_norm_backward(saved[0], saved[1], saved[2], grad_outputs[0].contiguous(),
                                             ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    return {gradients.x_XD, gradients.weight_D, {}};
  }
};

// ---- RoPE

// sign +1 rotates forward, -1 back. Each token's heads are contiguous in x.
at::Tensor rotate(const at::Tensor& x_THd, const at::Tensor& cos_Td2, const at::Tensor& sin_Td2, int sign) {
  const std::int64_t num_tokens = x_THd.size(0), H = x_THd.size(1), d = x_THd.size(2);
  const at::Tensor y_THd = at::empty(x_THd.sizes(), x_THd.options());
  with_element(x_THd.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    using Real = Accumulate<T>;
    const Rope<T> all = {.N = num_tokens,
                         .H = H,
                         .d = d,
                         .x_stride = x_THd.stride(0),
                         .y_stride = H * d,
                         .cos_Nd2 = input<Real>(cos_Td2),
                         .sin_Nd2 = input<Real>(sin_Td2),
                         .sign = sign,
                         .x_NHd = input<T>(x_THd),
                         .y_NHd = output<T>(y_THd)};
    if (launched_on_cuda(x_THd, [&](auto stream) { cuda::rope(all, stream); })) return;
    parallel_rows(num_tokens, H * d, [&](std::int64_t begin, std::int64_t end) {
      Rope<T> part = all;
      part.N = end - begin;
      part.cos_Nd2 += begin * (d / 2);
      part.sin_Nd2 += begin * (d / 2);
      part.x_NHd += begin * part.x_stride;
      part.y_NHd += begin * part.y_stride;
      kernels<T>().rope(part);
    });
  });
  return y_THd;
}

at::Tensor with_contiguous_heads(const at::Tensor& x_THd) {
  const bool contiguous = x_THd.stride(2) == 1 && x_THd.stride(1) == x_THd.size(2);
  return contiguous ? x_THd : x_THd.contiguous();
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_THd, const at::Tensor& cos_Td2,
                            const at::Tensor& sin_Td2) {
    ctx->save_for_backward({cos_Td2, sin_Td2});
    return rotate(x_THd, cos_Td2, sin_Td2, 1);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(with_contiguous_heads(grad_outputs[0]), saved[0], saved[1], -1), {}, {}};
  }
};

// ---- SwiGLU

at::Tensor swiglu_forward(const at::Tensor& gate_XF, const at::Tensor& up_XF) {
  const at::Tensor y_XF = at::empty_like(gate_XF);
  with_element(gate_XF.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    const SwiGluForward<T> all = {
        .N = gate_XF.numel(), .gate_N = input<T>(gate_XF), .up_N = input<T>(up_XF), .y_N = output<T>(y_XF)};
    if (launched_on_cuda(gate_XF, [&](auto stream) { cuda::swiglu_forward(all, stream); })) return;
    parallel_rows(all.N, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels<T>().swiglu_forward(
          {.N = end - begin, .gate_N = all.gate_N + begin, .up_N = all.up_N + begin, .y_N = all.y_N + begin});
    });
  });
  return y_XF;
}

struct SwiGluGradients {
  at::Tensor gate_XF, up_XF;
};

SwiGluGradients swiglu_backward(const at::Tensor& gate_XF, const at::Tensor& up_XF, const at::Tensor& grad_y_XF) {
  const SwiGluGradients gradients = {at::empty_like(gate_XF), at::empty_like(up_XF)};
  with_element(gate_XF.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    const SwiGluBackward<T> all = {.N = gate_XF.numel(),
                                   .gate_N = input<T>(gate_XF),
                                   .up_N = input<T>(up_XF),
                                   .grad_y_N = input<T>(grad_y_XF),
                                   .grad_gate_N = output<T>(gradients.gate_XF),
                                   .grad_up_N = output<T>(gradients.up_XF)};
    if (launched_on_cuda(gate_XF, [&](auto stream) { cuda::swiglu_backward(all, stream); })) return;
    parallel_rows(all.N, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels<T>().swiglu_backward({.N = end - begin,
                                    .gate_N = all.gate_N + begin,
                                    .up_N = all.up_N + begin,
                                    .grad_y_N = all.grad_y_N + begin,
                                    .grad_gate_N = all.grad_gate_N + begin,
                                    .grad_up_N = all.grad_up_N + begin});
    });
  });
  return gradients;
}

struct SwiGluFunction : torch::autograd::Function<SwiGluFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_XF, const at::Tensor& up_XF) {
    ctx->save_for_backward({gate_XF, up_XF});
    return swiglu_forward(gate_XF, up_XF);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto gradients = swiglu_backward(saved[0], saved[1], grad_outputs[0].contiguous());
    return {gradients.gate_XF, gradients.up_XF};
  }
};

// ---- the DAG's pair step

at::Tensor dag_pairs_forward(const at::Tensor& abce_TK4G) {
  const std::int64_t num_tokens = abce_TK4G.size(0), K = abce_TK4G.size(1), G = abce_TK4G.size(2) / 4;
  const at::Tensor s_TKG = at::empty({num_tokens, K, G}, abce_TK4G.options());
  with_element(abce_TK4G.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    const DagPairsForward<T> all = {
        .N = num_tokens, .K = K, .G = G, .abce_NK4G = input<T>(abce_TK4G), .s_NKG = output<T>(s_TKG)};
    if (launched_on_cuda(abce_TK4G, [&](auto stream) { cuda::dag_pairs_forward(all, stream); })) return;
    parallel_rows(num_tokens, K * K * G, [&](std::int64_t begin, std::int64_t end) {
      DagPairsForward<T> part = all;
      part.N = end - begin;
      part.abce_NK4G += begin * K * 4 * G;
      part.s_NKG += begin * K * G;
      kernels<T>().dag_pairs_forward(part);
    });
  });
  return s_TKG;
}

at::Tensor dag_pairs_backward(const at::Tensor& abce_TK4G, const at::Tensor& grad_s_TKG) {
  const std::int64_t num_tokens = abce_TK4G.size(0), K = abce_TK4G.size(1), G = abce_TK4G.size(2) / 4;
  const at::Tensor grad_abce_TK4G = at::empty_like(abce_TK4G);
  with_element(abce_TK4G.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    const DagPairsBackward<T> all = {.N = num_tokens,
                                     .K = K,
                                     .G = G,
                                     .abce_NK4G = input<T>(abce_TK4G),
                                     .grad_s_NKG = input<T>(grad_s_TKG),
                                     .grad_abce_NK4G = output<T>(grad_abce_TK4G)};
    if (launched_on_cuda(abce_TK4G, [&](auto stream) { cuda::dag_pairs_backward(all, stream); })) return;
    parallel_rows(num_tokens, K * K * G, [&](std::int64_t begin, std::int64_t end) {
      DagPairsBackward<T> part = all;
      part.N = end - begin;
      part.abce_NK4G += begin * K * 4 * G;
      part.grad_s_NKG += begin * K * G;
      part.grad_abce_NK4G += begin * K * 4 * G;
      kernels<T>().dag_pairs_backward(part);
    });
  });
  return grad_abce_TK4G;
}

struct DagPairsFunction : torch::autograd::Function<DagPairsFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& abce_TK4G) {
    ctx->save_for_backward({abce_TK4G});
    return dag_pairs_forward(abce_TK4G);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    return {dag_pairs_backward(ctx->get_saved_variables()[0], grad_outputs[0].contiguous())};
  }
};

}  // namespace
}  // namespace ops

at::Tensor rms_norm(const at::Tensor& x_XD, const at::Tensor& weight_D, double eps) {
  ops::require(x_XD.dim() >= 1 && weight_D.dim() == 1 && x_XD.size(-1) == weight_D.size(0), "rms_norm: found x ",
               shape_text(x_XD.sizes()), " and weight ", shape_text(weight_D.sizes()), ", expected equal last sizes");
  ops::require(weight_D.scalar_type() == ops::accumulate_dtype(x_XD.scalar_type()),
               "rms_norm: the weight is float, or double with double activations; found ",
               at::toString(weight_D.scalar_type()));
  const at::Tensor x = x_XD.contiguous(), weight = weight_D.contiguous();
  if (!ops::needs_gradient({x, weight})) return ops::rms_norm_forward(x, weight, eps).y_XD;
  return ops::RmsNormFunction::apply(x, weight, eps);
}

at::Tensor rope(const at::Tensor& x_THd, const at::Tensor& cos_Td2, const at::Tensor& sin_Td2) {
  ops::require(x_THd.dim() == 3 && x_THd.size(2) % 2 == 0, "rope: found x ", shape_text(x_THd.sizes()),
               ", expected [tokens, heads, even width]");
  for (const at::Tensor& table : {cos_Td2, sin_Td2}) {
    ops::require(table.dim() == 2 && table.size(0) == x_THd.size(0) && table.size(1) * 2 == x_THd.size(2),
                 "rope: found table ", shape_text(table.sizes()), " with x ", shape_text(x_THd.sizes()));
    ops::require(table.scalar_type() == ops::accumulate_dtype(x_THd.scalar_type()),
                 "rope: tables are float, or double with double activations; found ",
                 at::toString(table.scalar_type()));
  }
  const at::Tensor x = ops::with_contiguous_heads(x_THd), cosines = cos_Td2.contiguous(), sines = sin_Td2.contiguous();
  if (!ops::needs_gradient({x})) return ops::rotate(x, cosines, sines, 1);
  return ops::RopeFunction::apply(x, cosines, sines);
}

at::Tensor swiglu(const at::Tensor& gate_XF, const at::Tensor& up_XF) {
  ops::require(gate_XF.sizes() == up_XF.sizes() && gate_XF.scalar_type() == up_XF.scalar_type(), "swiglu: found gate ",
               shape_text(gate_XF.sizes()), " and up ", shape_text(up_XF.sizes()),
               ", expected the same shape and dtype");
  const at::Tensor gate = gate_XF.contiguous(), up = up_XF.contiguous();
  if (!ops::needs_gradient({gate, up})) return ops::swiglu_forward(gate, up);
  return ops::SwiGluFunction::apply(gate, up);
}

at::Tensor dag_pairs(const at::Tensor& abce_TK4G) {
  ops::require(abce_TK4G.dim() == 3 && abce_TK4G.size(2) % 4 == 0, "dag_pairs: found abce ",
               shape_text(abce_TK4G.sizes()), ", expected [tokens, chosen experts, 4 x node width]");
  const at::Tensor abce = abce_TK4G.contiguous();
  if (!ops::needs_gradient({abce})) return ops::dag_pairs_forward(abce);
  return ops::DagPairsFunction::apply(abce);
}

}  // namespace dagmoe
