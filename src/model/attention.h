#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"
#include "model/rope.h"

namespace dagmoe {

/// The weights of one attention layer; those that the family lacks are undefined. Letters: D hidden, O rows of a
/// projection, d head width, R latent width.
struct Attention {
  at::Tensor q_proj_OD, k_proj_OD, v_proj_OD, o_proj_DO;
  at::Tensor q_bias_O, k_bias_O, v_bias_O, o_bias_D;
  at::Tensor q_norm, k_norm;  ///< [d] per head, or [O] over the whole projection
  // Latent attention: q by way of a latent too when q_lora_rank is set.
  at::Tensor q_a_proj_RD, q_a_norm_R, q_b_proj_OR;
  at::Tensor kv_a_proj_RD, kv_a_norm_R, kv_b_proj_OR;
};

/// What attention works on. In latent attention v is padded with zeros to the width of q and k, which LibTorch's
/// kernel wants, and q carries yarn's scale.
struct QueryKeyValue {
  at::Tensor q_THd, k_THkd, v_THkd;
};

/// x_TD (normed) -> rotated q and k, and v, in the dtype of x.
QueryKeyValue project_qkv(const Attention& attention, const ModelConfig& config, const at::Tensor& x_TD,
                          const RopeTables& rope);
/// attended_THd -> what is added to the residual stream.
at::Tensor project_output(const Attention& attention, const ModelConfig& config, const at::Tensor& attended_THd);

/// Width of a head of q and k.
std::int64_t query_head_dim(const ModelConfig& config);

}  // namespace dagmoe
