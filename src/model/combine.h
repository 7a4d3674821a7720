#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <functional>
#include <vector>

#include "model/config.h"

namespace dagmoe {

/// The weights of one DAG iteration. Letters: D hidden, G node width. edge and node take [target, source], target half
/// first.
struct DagStep {
  at::Tensor norm_D, down_GD, edge_G2G, node_G2G, up_DG;
};

/// y = r_out + sum_i g_i E_i, refined by the steps (arXiv:2606.01062 eq. 6-12 in delta form, method.md 1.2 DAG-3):
///   out = outer_TD + sum_i x_i + sum_l W_up^l sum_i S_i^l
/// Without steps, or with every W_up zero, it is bit-identical to the plain weighted sum.
struct CombineInput {
  at::Tensor hidden_TD;       ///< h, the residual stream
  at::Tensor normed_TD;       ///< xn, the input of router and experts
  at::Tensor expert_out_TKD;  ///< E_i(xn), token order
  at::Tensor weights_TK;      ///< g_i
};
/// `on_pairs` gets what the messages of iteration l are made of, (a, b, c, e) of every node: m_ij = SiLU(a_i + b_j) *
/// (c_i + e_j), method.md 1.2 DAG-1.
using OnPairs = std::function<void(std::size_t l, const at::Tensor& abce_TK4G)>;
at::Tensor combine_experts(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag,
                           double norm_eps, const OnPairs& on_pairs = {});

/// The slow twin that judges it: eq. 6-12 as printed, a Concat for every ordered pair of nodes.
at::Tensor combine_experts_reference(const CombineInput& input, const std::vector<DagStep>& steps, const DagConfig* dag,
                                     double norm_eps);

}  // namespace dagmoe
