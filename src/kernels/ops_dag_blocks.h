#pragma once

#include <ATen/ATen.h>

#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "kernels/ops_products.h"
#include "kernels/ops_support.h"

// The blocks of ops_dag.cpp, which alone includes this. A block of tokens goes through everything on one thread, so
// that its nodes stay in the core's cache and no thread waits between the steps. Rows: the K nodes of each token, one
// after the other.

namespace dagmoe::ops {
namespace {

// oneDNN builds a program for every shape it has not seen, so the last block is filled up with zeros to a multiple of
// this many tokens.
constexpr std::int64_t kTokenMultiple = 8;

at::ScalarType type_of(const at::TensorOptions& options) { return options.dtype().toScalarType(); }

/// Tokens [begin, begin + count) and, with zeros after them, `padded` in all.
struct TokenBlock {
  std::int64_t index, begin, count, padded;
};

/// What a call works on. The order of `tensors` is that of the Function's inputs.
struct DagCall {
  std::vector<at::Tensor> tensors;  // hidden, extra residual, expert outputs, weights; then 5 of each iteration
  DagOptions options;

  const at::Tensor& hidden_TD() const { return tensors[0]; }
  // Autograd takes no undefined tensor, so an empty one stands for none.
  at::Tensor extra_TD() const { return tensors[1].defined() && tensors[1].numel() > 0 ? tensors[1] : at::Tensor(); }
  const at::Tensor& expert_TKD() const { return tensors[2]; }
  const at::Tensor& weight_TK() const { return tensors[3]; }
  std::size_t num_iterations() const { return (tensors.size() - 4) / 5; }
  const at::Tensor& of_iteration(std::size_t l, std::size_t which) const { return tensors[4 + 5 * l + which]; }
};
enum Which : std::size_t { kNorm, kDown, kEdge, kNode, kUp };

/// What the backward pass needs besides the inputs.
struct DagSaved {
  std::vector<at::Tensor> z_LRG;    // the nodes, normed and projected
  std::vector<at::Tensor> s_LRG;    // their messages, but for the last iteration
  std::vector<at::Tensor> sum_LTG;  // messages of a token's nodes together
  std::vector<at::Tensor> mean_LR, rstd_LR;
};

/// The weights of one iteration in the dtype of the activations; the norm's in the accumulate type.
struct Weights {
  at::Tensor norm_D, down_GD, mix_4GG, up_DG;
};

template <class T>
class DagRun {
 public:
  using Real = Accumulate<T>;

  explicit DagRun(const DagCall& call)
      : call_(call),
        num_tokens_(call.expert_TKD().size(0)),
        K_(call.expert_TKD().size(1)),
        D_(call.expert_TKD().size(2)),
        tokens_per_block_(std::max(kTokenMultiple, kDagRowsPerBlock / K_ / kTokenMultiple * kTokenMultiple)),
        num_padded_((num_tokens_ + kTokenMultiple - 1) / kTokenMultiple * kTokenMultiple),
        options_(call.expert_TKD().options()) {
    const at::ScalarType dtype = type_of(options_), accumulate = accumulate_dtype(dtype);
    // Rounded as the activations are, as every implementation does it.
    weight_TK_ = call.weight_TK().to(dtype).to(accumulate).contiguous();
    for (std::size_t l = 0; l < call.num_iterations(); ++l) {
      const auto weight = [&](Which which) { return call.of_iteration(l, which); };
      G_ = weight(kDown).size(0);
      // eq. 9-10. W [z_i, z_j] = W_target z_i + W_source z_j, so each node is projected once, not each pair.
      const at::Tensor mix_4GG = at::cat({weight(kEdge).narrow(1, 0, G_), weight(kEdge).narrow(1, G_, G_),
                                          weight(kNode).narrow(1, 0, G_), weight(kNode).narrow(1, G_, G_)});
      weights_.push_back({weight(kNorm).to(accumulate).contiguous(), weight(kDown).to(dtype).contiguous(),
                          mix_4GG.to(dtype), weight(kUp).to(dtype).contiguous()});
    }
  }

  at::Tensor forward(DagSaved& saved) const {
    const std::size_t L = weights_.size();
    for (std::size_t l = 0; l < L; ++l) {
      saved.z_LRG.push_back(at::empty({num_padded_ * K_, G_}, options_));
      saved.sum_LTG.push_back(at::empty({num_padded_, G_}, options_));
      for (auto* statistic : {&saved.mean_LR, &saved.rstd_LR})
        statistic->push_back(at::empty({num_padded_ * K_}, options_.dtype(accumulate_dtype(type_of(options_)))));
      if (l + 1 < L) saved.s_LRG.push_back(at::empty({num_padded_ * K_, G_}, options_));
    }
    const at::Tensor out_PD = at::empty({num_padded_, D_}, options_);
    for_each_block([&](Scratch& scratch, const TokenBlock& block) { forward_block(saved, out_PD, scratch, block); });
    return out_PD.narrow(0, 0, num_tokens_);
  }

  /// Gradients of call.tensors; undefined where `wanted` is false.
  std::vector<at::Tensor> backward(const DagSaved& saved, const at::Tensor& grad_out_TD,
                                   const std::vector<bool>& wanted) const {
    Gradients gradients(*this, wanted);
    for_each_block([&](Scratch& scratch, const TokenBlock& block) {
      backward_block(saved, grad_out_TD, gradients, scratch, block);
    });
    return gradients.result(*this, grad_out_TD);
  }

 private:
  /// One thread's memory for a block.
  struct Scratch {
    Scratch(const DagRun& run, std::size_t num_nodes) {
      const std::int64_t rows = run.tokens_per_block_ * run.K_;
      for (std::size_t i = 0; i < num_nodes; ++i) nodes.push_back(at::empty({rows, run.D_}, run.options_));
      if (num_nodes == 0) return;
      normed = at::empty({rows, run.D_}, run.options_);
      grad_nodes = at::empty({rows, run.D_}, run.options_);
      grad_normed = at::empty({rows, run.D_}, run.options_);
      grad_out = at::empty({run.tokens_per_block_, run.D_}, run.options_);
      abce = at::empty({rows, 4 * run.G_}, run.options_);
      grad_abce = at::empty({rows, 4 * run.G_}, run.options_);
      s = at::empty({rows, run.G_}, run.options_);
      grad_z = at::empty({rows, run.G_}, run.options_);
      grad_sum = at::empty({run.tokens_per_block_, run.G_}, run.options_);
    }
    std::vector<at::Tensor> nodes;
    at::Tensor normed, grad_nodes, grad_normed, grad_out, abce, grad_abce, s, grad_z, grad_sum;
  };

  /// Gradients of the inputs, and of the weights block by block: added up in the order of the blocks, they do not
  /// depend on the threads.
  struct Gradients {
    Gradients(const DagRun& run, const std::vector<bool>& wanted_tensors) : wanted(wanted_tensors) {
      const auto real = run.options_.dtype(accumulate_dtype(type_of(run.options_)));
      const std::int64_t B = run.num_blocks();
      if (wanted[2]) expert_TKD = at::empty({run.num_tokens_, run.K_, run.D_}, run.options_);
      if (wanted[3]) weight_TK = at::empty({run.num_tokens_, run.K_}, real);
      if (wants_residual(run)) residual_TD = at::empty({run.num_tokens_, run.D_}, run.options_);
      for (std::size_t l = 0; l < run.weights_.size(); ++l) {
        norm_LBD.push_back(wants(l, kNorm) ? at::zeros({B, run.D_}, real) : at::Tensor());
        down_LBGD.push_back(wants(l, kDown) ? at::empty({B, run.G_, run.D_}, run.options_) : at::Tensor());
        mix_LB4GG.push_back(wants(l, kEdge) || wants(l, kNode) ? at::empty({B, 4 * run.G_, run.G_}, run.options_)
                                                               : at::Tensor());
        up_LBDG.push_back(wants(l, kUp) ? at::empty({B, run.D_, run.G_}, run.options_) : at::Tensor());
      }
    }
    bool wants(std::size_t l, Which which) const { return wanted[4 + 5 * l + which]; }
    bool wants_residual(const DagRun& run) const {
      if (run.weights_.empty()) return false;
      return (wanted[0] && run.call_.options.hidden_is_residual) || wanted[1];
    }
    /// Whether iteration l's inputs have to be differentiated.
    bool wants_nodes(std::size_t l, const DagRun& run) const {
      return l > 0 || wants(0, kNorm) || wanted[2] || wanted[3] || wants_residual(run);
    }

    std::vector<at::Tensor> result(const DagRun& run, const at::Tensor& grad_out_TD) const {
      std::vector<at::Tensor> all(wanted.size());
      const bool hidden_is_residual = run.call_.options.hidden_is_residual && !run.weights_.empty();
      if (wanted[0]) all[0] = hidden_is_residual ? residual_TD : grad_out_TD;
      if (wanted[1]) all[1] = residual_TD.defined() ? residual_TD : grad_out_TD;
      all[2] = expert_TKD;
      if (wanted[3]) all[3] = weight_TK.to(run.call_.weight_TK().scalar_type());
      for (std::size_t l = 0; l < run.weights_.size(); ++l) {
        const auto total = [&](const at::Tensor& parts_BX) {
          const auto dtype = accumulate_dtype(parts_BX.scalar_type());
          return parts_BX.sum(0, /*keepdim=*/false, dtype);
        };
        const auto set = [&](Which which, const at::Tensor& value) {
          if (wants(l, which)) all[4 + 5 * l + which] = value.to(run.call_.of_iteration(l, which).scalar_type());
        };
        if (wants(l, kNorm)) set(kNorm, total(norm_LBD[l]));
        if (wants(l, kDown)) set(kDown, total(down_LBGD[l]));
        if (wants(l, kUp)) set(kUp, total(up_LBDG[l]));
        if (!mix_LB4GG[l].defined()) continue;
        const auto parts = total(mix_LB4GG[l]).chunk(4);
        set(kEdge, at::cat({parts[0], parts[1]}, 1));
        set(kNode, at::cat({parts[2], parts[3]}, 1));
      }
      return all;
    }

    std::vector<bool> wanted;
    at::Tensor expert_TKD, weight_TK, residual_TD;
    std::vector<at::Tensor> norm_LBD, down_LBGD, mix_LB4GG, up_LBDG;
  };

  std::int64_t num_blocks() const { return (num_tokens_ + tokens_per_block_ - 1) / tokens_per_block_; }

  template <class F>
  void for_each_block(F f) const {
    const auto make_scratch = [&] { return Scratch(*this, weights_.size()); };
    for_each_task(static_cast<std::size_t>(num_blocks()), make_scratch, [&](Scratch& scratch, std::size_t i) {
      const auto index = static_cast<std::int64_t>(i), begin = index * tokens_per_block_;
      f(scratch, TokenBlock{index, begin, std::min(tokens_per_block_, num_tokens_ - begin),
                            std::min(tokens_per_block_, num_padded_ - begin)});
    });
  }

  at::Tensor rows_of(const at::Tensor& rows_RX, const TokenBlock& block) const {
    return rows_RX.narrow(0, block.begin * K_, block.padded * K_);
  }
  at::Tensor first_rows(const at::Tensor& scratch_RX, const TokenBlock& block) const {
    return scratch_RX.narrow(0, 0, block.padded * K_);
  }
  void zero_padding(const at::Tensor& scratch_RX, const TokenBlock& block) const {
    if (block.padded > block.count) scratch_RX.narrow(0, block.count * K_, (block.padded - block.count) * K_).zero_();
  }

  DagNodesForward<T> nodes_of(const TokenBlock& block) const {
    const auto at_block = [&](const at::Tensor& x_TD) {
      return x_TD.defined() ? input<T>(x_TD) + block.begin * D_ : nullptr;
    };
    const at::Tensor residual_TD = call_.options.hidden_is_residual ? call_.hidden_TD() : call_.extra_TD();
    return {.N = block.count,
            .K = K_,
            .D = D_,
            .expert_NKD = input<T>(call_.expert_TKD()) + block.begin * K_ * D_,
            .weight_NK = input<Real>(weight_TK_) + block.begin * K_,
            .residual_ND = at_block(residual_TD),
            .outer_ND = at_block(call_.hidden_TD()),
            .extra_ND = at_block(call_.extra_TD())};
  }

  // eq. 7, into scratch.normed; with the statistics of the forward pass where it has been.
  void normalize(std::size_t l, const at::Tensor& nodes_RD, const DagSaved& saved, bool is_again, Scratch& scratch,
                 const TokenBlock& block) const {
    kernels<T>().layer_norm_forward({.N = block.count * K_,
                                     .D = D_,
                                     .eps = call_.options.norm_eps,
                                     .subtract_mean = call_.options.subtract_mean,
                                     .x_ND = input<T>(nodes_RD),
                                     .weight_D = input<Real>(weights_[l].norm_D),
                                     .y_ND = output<T>(scratch.normed),
                                     .mean_N = output<Real>(saved.mean_LR[l]) + block.begin * K_,
                                     .rstd_N = output<Real>(saved.rstd_LR[l]) + block.begin * K_,
                                     .has_statistics = is_again});
    zero_padding(scratch.normed, block);
  }

  void forward_block(const DagSaved& saved, const at::Tensor& out_PD, Scratch& scratch, const TokenBlock& block) const {
    DagNodesForward<T> start = nodes_of(block);
    start.out_ND = output<T>(out_PD) + block.begin * D_;
    const std::size_t L = weights_.size();
    if (L > 0) start.nodes_NKD = output<T>(scratch.nodes[0]);
    kernels<T>().dag_nodes_forward(start);
    if (L == 0) return;
    const at::Tensor nodes_RD = first_rows(scratch.nodes[0], block), abce_R4G = first_rows(scratch.abce, block),
                     out_BD = out_PD.narrow(0, block.begin, block.padded);
    for (std::size_t l = 0; l < L; ++l) {
      const Weights& weights = weights_[l];
      normalize(l, nodes_RD, saved, /*is_again=*/false, scratch, block);
      const at::Tensor z_RG = rows_of(saved.z_LRG[l], block);
      multiply_into(z_RG, first_rows(scratch.normed, block), weights.down_GD.t());  // eq. 8
      multiply_into(abce_R4G, z_RG, weights.mix_4GG.t());
      const bool is_last = l + 1 == L;
      const at::Tensor s_RG = is_last ? first_rows(scratch.s, block) : rows_of(saved.s_LRG[l], block);
      kernels<T>().dag_pairs_forward(
          {.N = block.padded, .K = K_, .G = G_, .abce_NK4G = input<T>(abce_R4G), .s_NKG = output<T>(s_RG)});
      // eq. 11. The read-out of eq. 12 sums over the nodes, and the sum commutes with W_up.
      const at::Tensor sum_BG = saved.sum_LTG[l].narrow(0, block.begin, block.padded);
      kernels<T>().dag_nodes_forward({.N = block.padded,
                                      .K = K_,
                                      .D = G_,
                                      .expert_NKD = input<T>(s_RG),
                                      .weight_NK = nullptr,
                                      .out_ND = output<T>(sum_BG)});
      add_product(out_BD, sum_BG, weights.up_DG.t());
      if (!is_last) add_product(nodes_RD, s_RG, weights.up_DG.t());
    }
  }

  // The nodes that each iteration began with; cheaper to form again than to keep.
  void form_nodes_again(const DagSaved& saved, Scratch& scratch, const TokenBlock& block) const {
    DagNodesForward<T> start = nodes_of(block);
    start.nodes_NKD = output<T>(scratch.nodes[0]);
    kernels<T>().dag_nodes_forward(start);
    for (std::size_t l = 0; l + 1 < weights_.size(); ++l) {
      const at::Tensor next_RD = first_rows(scratch.nodes[l + 1], block);
      next_RD.copy_(first_rows(scratch.nodes[l], block));
      add_product(next_RD, rows_of(saved.s_LRG[l], block), weights_[l].up_DG.t());
    }
  }

  at::Tensor padded_grad_out(const at::Tensor& grad_out_TD, Scratch& scratch, const TokenBlock& block) const {
    const at::Tensor rows = grad_out_TD.narrow(0, block.begin, block.count);
    if (block.padded == block.count) return rows;
    const at::Tensor padded = scratch.grad_out.narrow(0, 0, block.padded);
    padded.narrow(0, 0, block.count).copy_(rows);
    padded.narrow(0, block.count, block.padded - block.count).zero_();
    return padded;
  }

  // Leaves the gradient of the nodes, but for their share in the sum, in scratch.grad_nodes.
  void backward_iteration(std::size_t l, const DagSaved& saved, const at::Tensor& grad_out_BD, Gradients& gradients,
                          Scratch& scratch, const TokenBlock& block) const {
    const Weights& weights = weights_[l];
    const bool is_last = l + 1 == weights_.size();
    const at::Tensor z_RG = rows_of(saved.z_LRG[l], block), grad_s_RG = first_rows(scratch.s, block),
                     abce_R4G = first_rows(scratch.abce, block), grad_abce_R4G = first_rows(scratch.grad_abce, block),
                     grad_sum_BG = scratch.grad_sum.narrow(0, 0, block.padded),
                     grad_nodes_RD = first_rows(scratch.grad_nodes, block);
    multiply_into(grad_sum_BG, grad_out_BD, weights.up_DG);
    grad_s_RG.view({block.padded, K_, G_}).copy_(grad_sum_BG.unsqueeze(1));
    if (!is_last) add_product(grad_s_RG, grad_nodes_RD, weights.up_DG);
    if (gradients.wants(l, kUp)) {
      const at::Tensor up_DG = gradients.up_LBDG[l][block.index];
      multiply_into(up_DG, grad_out_BD.t(), saved.sum_LTG[l].narrow(0, block.begin, block.padded));
      if (!is_last) add_product(up_DG, grad_nodes_RD.t(), rows_of(saved.s_LRG[l], block));
    }
    multiply_into(abce_R4G, z_RG, weights.mix_4GG.t());
    kernels<T>().dag_pairs_backward({.N = block.padded,
                                     .K = K_,
                                     .G = G_,
                                     .abce_NK4G = input<T>(abce_R4G),
                                     .grad_s_NKG = input<T>(grad_s_RG),
                                     .grad_abce_NK4G = output<T>(grad_abce_R4G)});
    if (gradients.mix_LB4GG[l].defined()) multiply_into(gradients.mix_LB4GG[l][block.index], grad_abce_R4G.t(), z_RG);
    const bool wants_nodes = gradients.wants_nodes(l, *this);
    if (!wants_nodes && !gradients.wants(l, kDown)) return;
    const at::Tensor grad_z_RG = first_rows(scratch.grad_z, block);
    multiply_into(grad_z_RG, grad_abce_R4G, weights.mix_4GG);
    normalize(l, scratch.nodes[l], saved, /*is_again=*/true, scratch, block);
    if (gradients.wants(l, kDown))
      multiply_into(gradients.down_LBGD[l][block.index], grad_z_RG.t(), first_rows(scratch.normed, block));
    if (!wants_nodes) return;
    multiply_into(first_rows(scratch.grad_normed, block), grad_z_RG, weights.down_GD);
    Real* grad_norm_D = gradients.wants(l, kNorm) ? output<Real>(gradients.norm_LBD[l]) + block.index * D_ : nullptr;
    kernels<T>().layer_norm_backward({.N = block.count * K_,
                                      .D = D_,
                                      .subtract_mean = call_.options.subtract_mean,
                                      .x_ND = input<T>(scratch.nodes[l]),
                                      .weight_D = input<Real>(weights.norm_D),
                                      .mean_N = input<Real>(saved.mean_LR[l]) + block.begin * K_,
                                      .rstd_N = input<Real>(saved.rstd_LR[l]) + block.begin * K_,
                                      .grad_y_ND = input<T>(scratch.grad_normed),
                                      .grad_before_ND = is_last ? nullptr : input<T>(scratch.grad_nodes),
                                      .grad_x_ND = output<T>(scratch.grad_nodes),
                                      .grad_weight_D = grad_norm_D});
  }

  void backward_block(const DagSaved& saved, const at::Tensor& grad_out_TD, Gradients& gradients, Scratch& scratch,
                      const TokenBlock& block) const {
    const std::size_t L = weights_.size();
    if (L > 0) {
      form_nodes_again(saved, scratch, block);
      zero_padding(scratch.grad_nodes, block);
      const at::Tensor grad_out_BD = padded_grad_out(grad_out_TD, scratch, block);
      for (std::size_t l = L; l-- > 0;) backward_iteration(l, saved, grad_out_BD, gradients, scratch, block);
    }
    const auto at_block = [&](const at::Tensor& x, std::int64_t width) {
      return x.defined() ? output<T>(x) + block.begin * width : nullptr;
    };
    kernels<T>().dag_nodes_backward(
        {.N = block.count,
         .K = K_,
         .D = D_,
         .expert_NKD = input<T>(call_.expert_TKD()) + block.begin * K_ * D_,
         .weight_NK = input<Real>(weight_TK_) + block.begin * K_,
         .grad_out_ND = input<T>(grad_out_TD) + block.begin * D_,
         .grad_nodes_NKD = L > 0 && gradients.wants_nodes(0, *this) ? input<T>(scratch.grad_nodes) : nullptr,
         .grad_expert_NKD = at_block(gradients.expert_TKD, K_ * D_),
         .grad_weight_NK =
             gradients.weight_TK.defined() ? output<Real>(gradients.weight_TK) + block.begin * K_ : nullptr,
         .grad_residual_ND = at_block(gradients.residual_TD, D_)});
  }

  const DagCall& call_;
  std::int64_t num_tokens_, K_, D_, G_ = 0, tokens_per_block_, num_padded_;
  at::TensorOptions options_;
  at::Tensor weight_TK_;
  std::vector<Weights> weights_;
};

}  // namespace
}  // namespace dagmoe::ops
