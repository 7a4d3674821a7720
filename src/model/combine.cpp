#include "model/combine.h"

#include <ATen/ATen.h>

#include <utility>

#include "kernels/ops.h"
#include "model/recompute.h"

namespace dagmoe {
namespace {

at::Tensor cast(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

at::Tensor normalize(const at::Tensor& nodes_TKD, const at::Tensor& norm_D, DagNorm norm, double eps) {
  if (norm == DagNorm::kRmsNorm) return rms_norm(nodes_TKD, norm_D, eps);
  return at::layer_norm(nodes_TKD, {nodes_TKD.size(2)}, norm_D, {}, eps);
}

// r of eq. 6; undefined when nothing is added.
at::Tensor node_residual(const CombineInput& input, const DagConfig& dag) {
  switch (dag.node_residual) {
    case NodeResidual::kHiddenState:
      return input.hidden_TD;
    case NodeResidual::kNormedInput:
      return input.normed_TD;
    case NodeResidual::kNone:
      return {};
  }
  return {};
}

// What the layer returns before any step: h + sum_i g_i E_i, and the xn that `normed_input` adds besides.
at::Tensor plain_output(const CombineInput& input, const at::Tensor& nodes_TKD, const DagConfig* dag) {
  const at::Tensor out_TD = input.hidden_TD + nodes_TKD.sum(1);
  const bool adds_input = dag != nullptr && dag->node_residual == NodeResidual::kNormedInput;
  return adds_input ? out_TD + input.normed_TD : out_TD;
}

at::Tensor combine(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag, double norm_eps,
                   const OnPairs& on_pairs) {
  const auto dtype = input.expert_out_TKD.scalar_type();
  const auto K = input.weights_TK.size(1);
  const at::Tensor expert_nodes_TKD = cast(input.weights_TK, dtype).unsqueeze(-1) * input.expert_out_TKD;
  at::Tensor out_TD = plain_output(input, expert_nodes_TKD, dag);
  if (steps.empty()) return out_TD;

  at::Tensor nodes_TKD = expert_nodes_TKD;  // eq. 6
  if (const at::Tensor r_TD = node_residual(input, *dag); r_TD.defined())
    nodes_TKD = nodes_TKD + (r_TD / static_cast<double>(K)).unsqueeze(1);

  for (std::size_t l = 0; l < steps.size(); ++l) {
    const DagStep& step = steps[l];
    const auto G = step.down_GD.size(0);
    // eq. 7-8
    const at::Tensor z_TKG =
        at::linear(normalize(nodes_TKD, step.norm_D, dag->norm, norm_eps), cast(step.down_GD, dtype));
    // eq. 9-10. W [z_i, z_j] = W_target z_i + W_source z_j, so each node is projected once, not each pair.
    const at::Tensor abce_4GG = at::cat({step.edge_G2G.narrow(1, 0, G), step.edge_G2G.narrow(1, G, G),
                                         step.node_G2G.narrow(1, 0, G), step.node_G2G.narrow(1, G, G)});
    const at::Tensor abce_TK4G = at::linear(z_TKG, cast(abce_4GG, dtype));
    if (on_pairs) on_pairs(l, abce_TK4G);
    const at::Tensor s_TKG = dag_pairs(abce_TK4G);
    // eq. 11. The read-out of eq. 12 sums over the nodes, and the sum commutes with W_up.
    const at::Tensor up_DG = cast(step.up_DG, dtype);
    out_TD = out_TD + at::linear(s_TKG.sum(1), up_DG);
    if (l + 1 < steps.size()) nodes_TKD = nodes_TKD + at::linear(s_TKG, up_DG);
  }
  return out_TD;
}

at::Tensor combine_fused(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag,
                         double norm_eps) {
  DagInput in{input.hidden_TD, {}, input.expert_out_TKD, input.weights_TK};
  DagOptions options{.norm_eps = norm_eps};
  if (dag != nullptr) {
    if (dag->node_residual == NodeResidual::kNormedInput) in.extra_residual_TD = input.normed_TD;
    options.hidden_is_residual = dag->node_residual == NodeResidual::kHiddenState;
    options.subtract_mean = dag->norm == DagNorm::kLayerNorm;
  }
  std::vector<DagIteration> iterations;
  for (const DagStep& step : steps)
    iterations.push_back({step.norm_D, step.down_GD, step.edge_G2G, step.node_G2G, step.up_DG});
  return dag_combine(in, iterations, options);
}

// All tensors that the graph of the experts is computed from, in one list, and back.
std::vector<at::Tensor> as_list(const CombineInput& input, const std::vector<DagStep>& steps) {
  std::vector<at::Tensor> list{input.hidden_TD, input.normed_TD, input.expert_out_TKD, input.weights_TK};
  for (const DagStep& step : steps)
    list.insert(list.end(), {step.norm_D, step.down_GD, step.edge_G2G, step.node_G2G, step.up_DG});
  return list;
}

std::pair<CombineInput, std::vector<DagStep>> from_list(const std::vector<at::Tensor>& list) {
  constexpr std::size_t kInputs = 4, kPerStep = 5;
  std::vector<DagStep> steps;
  for (std::size_t i = kInputs; i < list.size(); i += kPerStep)
    steps.push_back({list[i], list[i + 1], list[i + 2], list[i + 3], list[i + 4]});
  return {{list[0], list[1], list[2], list[3]}, std::move(steps)};
}

}  // namespace

at::Tensor combine_experts(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag,
                           double norm_eps, const OnPairs& on_pairs) {
  if (input.hidden_TD.is_cpu() && !on_pairs) return combine_fused(input, steps, dag, norm_eps);
  if (steps.empty() || on_pairs) return combine(input, steps, dag, norm_eps, on_pairs);
  // K nodes of width D before and after each norm would be most of what a DAG layer keeps for its backward pass;
  // forming them again costs a fraction of the experts' products.
  const auto again = [config = *dag, norm_eps](const std::vector<at::Tensor>& list) {
    const auto [again_input, again_steps] = from_list(list);
    return combine(again_input, again_steps, &config, norm_eps, {});
  };
  return run_again_in_backward(again, as_list(input, steps));
}

at::Tensor combine_experts_reference(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag,
                                     double norm_eps) {
  const auto K = input.weights_TK.size(1);
  const at::Tensor expert_nodes_TKD = input.weights_TK.unsqueeze(-1) * input.expert_out_TKD;
  if (steps.empty()) return plain_output(input, expert_nodes_TKD, dag);
  const at::Tensor r_TD = node_residual(input, *dag);
  at::Tensor x_TKD = r_TD.defined() ? expert_nodes_TKD + r_TD.unsqueeze(1) / static_cast<double>(K) : expert_nodes_TKD;
  for (const DagStep& step : steps) {
    const at::Tensor z_TKG = at::linear(normalize(x_TKD, step.norm_D, dag->norm, norm_eps), step.down_GD);
    std::vector<at::Tensor> messages;
    for (std::int64_t i = 0; i < K; ++i) {
      at::Tensor sum_TG;
      for (std::int64_t j = 0; j < K; ++j) {
        const at::Tensor p_T2G = at::cat({z_TKG.select(1, i), z_TKG.select(1, j)}, 1);
        const at::Tensor m_TG = at::silu(at::linear(p_T2G, step.edge_G2G)) * at::linear(p_T2G, step.node_G2G);
        sum_TG = sum_TG.defined() ? sum_TG + m_TG : m_TG;
      }
      messages.push_back(sum_TG);
    }
    x_TKD = x_TKD + at::linear(at::stack(messages, 1), step.up_DG);
  }
  const at::Tensor y_TD = x_TKD.sum(1);  // eq. 12
  return dag->node_residual == NodeResidual::kHiddenState ? y_TD : input.hidden_TD + y_TD;
}

}  // namespace dagmoe
