#include <ATen/ATen.h>

#include <utility>

#include "kernels/ops.h"
#include "kernels/ops_products.h"
#include "kernels/ops_support.h"

// A router's product in float: a block of rows becomes float in the cache of the core that multiplies it.

namespace dagmoe {
namespace ops {
namespace {

constexpr std::int64_t kRowsPerBlock = 256;

// f(float rows to work in, first, count) for all blocks of T rows of width D, on all threads.
template <class F>
void for_each_float_block(std::int64_t T, std::int64_t D, F f) {
  const auto num_blocks = static_cast<std::size_t>((T + kRowsPerBlock - 1) / kRowsPerBlock);
  for_each_task(
      num_blocks,
      [&] {
        return at::empty({kRowsPerBlock, D}, at::kFloat);
      },
      [&](at::Tensor& floats, std::size_t i) {
        const std::int64_t first = static_cast<std::int64_t>(i) * kRowsPerBlock,
                           count = std::min(kRowsPerBlock, T - first);
        f(floats.narrow(0, 0, count), first, count);
      });
}

at::Tensor logits_by_block(const at::Tensor& x_TD, const at::Tensor& weight_ED) {
  const at::Tensor logits_TE = at::empty({x_TD.size(0), weight_ED.size(0)}, at::kFloat);
  for_each_float_block(x_TD.size(0), x_TD.size(1), [&](at::Tensor rows, std::int64_t first, std::int64_t count) {
    rows.copy_(x_TD.narrow(0, first, count));
    multiply_into(logits_TE.narrow(0, first, count), rows, weight_ED.t());
  });
  return logits_TE;
}

struct RouterFunction : torch::autograd::Function<RouterFunction> {
  // saved: x where the weight trains, the weight where x needs a gradient.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& weight_ED) {
    ctx->save_for_backward(
        {weight_ED.requires_grad() ? x_TD : at::Tensor(), x_TD.requires_grad() ? weight_ED : at::Tensor()});
    ctx->saved_data["dtype"] = x_TD.scalar_type();
    ctx->saved_data["width"] = x_TD.size(1);
    return logits_by_block(x_TD, weight_ED);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor grad_TE = grad_outputs[0].contiguous();
    const std::int64_t T = grad_TE.size(0), E = grad_TE.size(1), D = ctx->saved_data["width"].toInt();
    at::Tensor grad_x_TD, parts_BED;
    if (ctx->needs_input_grad(0)) grad_x_TD = at::empty({T, D}, ctx->saved_data["dtype"].toScalarType());
    // Added up in the order of the blocks, whichever thread forms them.
    if (ctx->needs_input_grad(1)) parts_BED = at::empty({(T + kRowsPerBlock - 1) / kRowsPerBlock, E, D}, at::kFloat);
    for_each_float_block(T, D, [&](at::Tensor rows, std::int64_t first, std::int64_t count) {
      const at::Tensor grad_CE = grad_TE.narrow(0, first, count);
      if (grad_x_TD.defined()) {
        multiply_into(rows, grad_CE, saved[1]);
        grad_x_TD.narrow(0, first, count).copy_(rows);
      }
      if (!parts_BED.defined()) return;
      rows.copy_(saved[0].narrow(0, first, count));
      multiply_into(parts_BED[first / kRowsPerBlock], grad_CE.t(), rows);
    });
    return {grad_x_TD, parts_BED.defined() ? parts_BED.sum(0) : at::Tensor()};
  }
};

}  // namespace
}  // namespace ops

at::Tensor router_logits(const at::Tensor& x_TD, const at::Tensor& weight_ED) {
  ops::require(x_TD.dim() == 2 && weight_ED.dim() == 2 && x_TD.size(1) == weight_ED.size(1) &&
                   weight_ED.scalar_type() == ops::accumulate_dtype(x_TD.scalar_type()),
               "router_logits: found x ", shape_text(x_TD.sizes()), " of ", at::toString(x_TD.scalar_type()),
               " and weight ", shape_text(weight_ED.sizes()), " of ", at::toString(weight_ED.scalar_type()));
  if (!x_TD.is_cpu() || x_TD.scalar_type() != at::kBFloat16)
    return at::linear(x_TD.to(weight_ED.scalar_type()), weight_ED);
  if (!ops::needs_gradient({x_TD, weight_ED})) return ops::logits_by_block(x_TD, weight_ED);
  return ops::RouterFunction::apply(x_TD, weight_ED);
}

}  // namespace dagmoe
