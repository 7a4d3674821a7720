#pragma once

#include <string_view>

#include "peft/mixture_support.h"

// S'MoRE (arXiv:2504.06426): a tree of low-rank residuals whose branches a router chooses for every token.
//
//   t_{l+1} = sum over the chosen experts i of depth l:  alpha_i tanh(c_l B_l^i A_l^i x + W_l t_l^{(i)})
//   y += W_final t_L
//
// Depth 0 has the leaves and no W; depth L-1 is the top. Each node of depth l has num_active[l-1] children, and
// t_l^{(i)} is what its own children sum to. d_0 = 0, d_{l+1} = d_l + num_experts[l] ranks[l]. The router works from
// the top:
//
//   q = W_down x + b_down
//   p = softmax over the experts i of depth l of  key_i . MLP_l([q, keys of the ancestors, the top first])
//
// and the num_active[l] largest are chosen, once per parent. MLP_l is linear, ReLU, linear, all key_dim wide.
//
// Left open by the paper's equations, chosen here:
// - the activation is tanh, as in the authors' LLaMA-3-8B example; widths router_dim = key_dim = 32 are theirs too;
// - c_l = alpha / ranks[l], as in the authors' program where an alpha is given; alpha = rank is their c_l = 1;
// - alpha_i = p_i / (sum of the chosen p), but p_i itself where one expert is active: its quotient would always be 1
//   and the router would have no gradient (theirs does the same);
// - experts have no biases, as in the paper; the authors' program adds one to A, B, W_l and W_final.
// Letters: T tokens, I inputs and O outputs of the linear; of depth l: S experts, F active, R rank, P parents (the
// nodes above), N = P F nodes, C = d_l, D = d_{l+1}; Q router_dim, H key_dim, X = Q + ancestors H.

namespace dagmoe {

/// Index 0 is the leaves. The defaults are the paper's two-depth example.
struct SmoreConfig {
  std::vector<std::int64_t> num_experts = {4, 4}, num_active = {2, 2}, ranks = {8, 8};
  double alpha = 8.0;
  std::int64_t router_dim = 32, key_dim = 32;
  std::int64_t num_depths() const { return static_cast<std::int64_t>(num_experts.size()); }
};

/// What is wrong with it, "KEY: found X, expected Y" each.
std::vector<std::string> problems_of(const SmoreConfig& config);
/// Throws ConfigError with every problem; `where` is the place in the recipe or file.
void check(const SmoreConfig& config, std::string_view where);

struct SmoreDepth {
  at::Tensor A_SRI, B_SDR;
  at::Tensor W_DC;  ///< undefined at depth 0
  at::Tensor keys_SH;
  at::Tensor hidden_weight_HX, hidden_bias_H, query_weight_HH, query_bias_H;  ///< MLP_l
};

/// Handles of the tensors of one adapted linear.
struct Smore {
  SmoreConfig config;
  at::Tensor down_weight_QI, down_bias_Q;
  std::vector<SmoreDepth> depths;
  at::Tensor final_weight_OD;
};

/// "smore_router.down.weight" and ".bias"; for each depth l "smore_A.l.weight", "smore_B.l.weight", "smore_W.l.weight"
/// (not for l = 0), "smore_router.l.keys", "smore_router.l.hidden.weight" and ".bias", "smore_router.l.query.weight"
/// and
/// ".bias"; "smore_final.weight". All are trained.
std::vector<NamedShape> smore_shapes(const SmoreConfig& config, std::int64_t out, std::int64_t in);
/// The adapter's tensors in that order.
std::vector<at::Tensor*> smore_tensors(Smore& adapter);
/// From tensors in that order.
Smore make_smore(const SmoreConfig& config, const std::vector<at::Tensor>& tensors);
/// In place, as the authors' `w_final_zero`: W_final = 0, keys uniform in [0, 1), everything else as torch.nn.Linear
/// draws (Kaiming uniform with a = sqrt(5); biases in +-1/sqrt(fan_in)). The update is exactly zero; the gradient of
/// W_final is not, since t_L is not, and after its first step no other gradient is stuck at zero either.
void initialize_smore(const Smore& adapter, at::Generator& generator);

struct SmoreDepthRouting {
  at::Tensor probabilities_TPS;  ///< float (double with double x), differentiable
  at::Tensor gates_TPF;          ///< alpha_i, same dtype
  at::Tensor expert_ids_TPF;     ///< int64; node p F + f is the f-th child of node p above
};
/// What was chosen for T tokens; index 0 is the leaves.
struct SmoreRouting {
  std::vector<SmoreDepthRouting> depths;
};

/// The update delta_TO in x's dtype, differentiable by x and every tensor of the adapter. Router, gates and the tree
/// between A and W_final are float (double with double x): they are narrow. `routing`, unless null, is set. Memory
/// beside x: T (S + P + N) D numbers a depth.
at::Tensor smore_delta(const at::Tensor& x_TI, const Smore& adapter, SmoreRouting* routing = nullptr);

/// The sum over depths of S sum_e f_e P_e: f_e the choices of e per parent node, P_e the mean probability. num_active
/// per depth when perfectly balanced (Hugging Face's scale). Gradient through P alone; 0 for no tokens. The paper's
/// coefficient is 1e-2.
at::Tensor smore_balance_loss(const SmoreRouting& routing, const SmoreConfig& config);

/// How often each expert of `depth` was chosen.
std::vector<std::int64_t> smore_counts(const SmoreRouting& routing, const SmoreConfig& config, std::int64_t depth);

}  // namespace dagmoe
