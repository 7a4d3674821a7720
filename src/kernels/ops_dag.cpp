#include <ATen/ATen.h>

#include <utility>

#include "kernels/ops.h"
#include "kernels/ops_dag_blocks.h"
#include "kernels/ops_support.h"

// The sum of a token's experts and the DAG iterations over them: one Function with a forward and a backward pass.

namespace dagmoe {
namespace ops {
namespace {

at::Tensor dag_forward(const DagCall& call, DagSaved& saved) {
  at::Tensor out_TD;
  with_element(call.expert_TKD().scalar_type(),
               [&](auto element) { out_TD = DagRun<typename decltype(element)::type>(call).forward(saved); });
  return out_TD;
}

struct DagFunction : torch::autograd::Function<DagFunction> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, const DagOptions& options) {
    const DagCall call{inputs.vec(), options};
    DagSaved saved;
    at::Tensor out_TD = dag_forward(call, saved);
    variable_list kept = call.tensors;
    // Only as residuals of the nodes are the first two needed again.
    if (call.num_iterations() == 0) kept[0] = kept[1] = at::Tensor();
    if (!options.hidden_is_residual) kept[0] = at::Tensor();
    for (const auto* list : {&saved.z_LRG, &saved.s_LRG, &saved.sum_LTG, &saved.mean_LR, &saved.rstd_LR})
      kept.insert(kept.end(), list->begin(), list->end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["norm_eps"] = options.norm_eps;
    ctx->saved_data["subtract_mean"] = options.subtract_mean;
    ctx->saved_data["hidden_is_residual"] = options.hidden_is_residual;
    ctx->saved_data["inputs"] = static_cast<std::int64_t>(inputs.size());
    return out_TD;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list kept = ctx->get_saved_variables();
    const auto num_inputs = static_cast<std::size_t>(ctx->saved_data["inputs"].toInt());
    DagCall call;
    call.tensors.assign(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(num_inputs));
    call.options = {ctx->saved_data["norm_eps"].toDouble(), ctx->saved_data["subtract_mean"].toBool(),
                    ctx->saved_data["hidden_is_residual"].toBool()};
    DagSaved saved;
    const std::size_t L = call.num_iterations();
    auto next = kept.begin() + static_cast<std::ptrdiff_t>(num_inputs);
    const auto take = [&](std::vector<at::Tensor>& list, std::size_t count) {
      for (std::size_t l = 0; l < count; ++l) list.push_back(*next++);
    };
    take(saved.z_LRG, L), take(saved.s_LRG, L == 0 ? 0 : L - 1), take(saved.sum_LTG, L);
    take(saved.mean_LR, L), take(saved.rstd_LR, L);
    std::vector<bool> wanted;
    for (std::size_t i = 0; i < num_inputs; ++i) wanted.push_back(ctx->needs_input_grad(i));
    variable_list gradients;
    with_element(call.expert_TKD().scalar_type(), [&](auto element) {
      gradients = DagRun<typename decltype(element)::type>(call).backward(saved, grad_outputs[0].contiguous(), wanted);
    });
    gradients.emplace_back();  // of `options`
    return gradients;
  }
};

}  // namespace
}  // namespace ops

at::Tensor dag_combine(const DagInput& in, const std::vector<DagIteration>& iterations, const DagOptions& options) {
  ops::require(in.expert_out_TKD.dim() == 3 && in.weights_TK.sizes() == in.expert_out_TKD.sizes().slice(0, 2) &&
                   in.hidden_TD.size(0) == in.expert_out_TKD.size(0) &&
                   in.hidden_TD.scalar_type() == in.expert_out_TKD.scalar_type() && in.expert_out_TKD.is_cpu(),
               "dag_combine: found expert outputs ", shape_text(in.expert_out_TKD.sizes()), " of ",
               at::toString(in.expert_out_TKD.scalar_type()), ", weights ", shape_text(in.weights_TK.sizes()),
               " and hidden ", shape_text(in.hidden_TD.sizes()), " of ", at::toString(in.hidden_TD.scalar_type()));
  const at::Tensor extra =
      in.extra_residual_TD.defined() ? in.extra_residual_TD.contiguous() : at::empty({0}, in.hidden_TD.options());
  ops::DagCall call{{in.hidden_TD.contiguous(), extra, in.expert_out_TKD.contiguous(), in.weights_TK.contiguous()},
                    options};
  for (const DagIteration& step : iterations) {
    const std::int64_t G = step.down_GD.size(0), D = in.hidden_TD.size(1);
    const std::vector<std::int64_t> pair_shape{G, 2 * G}, down_shape{G, D}, up_shape{D, G};
    ops::require(step.down_GD.sizes() == down_shape && step.up_DG.sizes() == up_shape &&
                     step.edge_G2G.sizes() == pair_shape && step.node_G2G.sizes() == pair_shape,
                 "dag_combine: found down ", shape_text(step.down_GD.sizes()), ", edge ",
                 shape_text(step.edge_G2G.sizes()), ", node ", shape_text(step.node_G2G.sizes()), " and up ",
                 shape_text(step.up_DG.sizes()), " for a width of ", D);
    call.tensors.insert(call.tensors.end(), {step.norm_D, step.down_GD, step.edge_G2G, step.node_G2G, step.up_DG});
  }
  if (ops::needs_gradient(call.tensors)) return ops::DagFunction::apply(at::TensorList(call.tensors), options);
  ops::DagSaved saved;
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  return ops::dag_forward(call, saved);
}

}  // namespace dagmoe
