#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"
#include "model/linear.h"
#include "model/rope.h"

namespace dagmoe {

/// The weights of one attention layer; those that the family lacks are undefined.
struct Attention {
  Linear q_proj, k_proj, v_proj, o_proj;
  at::Tensor q_norm, k_norm;  ///< [head width] per head, or [outputs] over the whole projection
  // Latent attention: q by way of a latent too when q_lora_rank is set.
  Linear q_a_proj, q_b_proj, kv_a_proj, kv_b_proj;
  at::Tensor q_a_norm_R, kv_a_norm_R;
};

/// What attention works on. In latent attention v is padded with zeros to the width of q and k, which LibTorch's
/// kernel wants, and q carries yarn's scale.
struct QueryKeyValue {
  at::Tensor q_THd, k_THkd, v_THkd;
};

/// x_TD (normed) -> rotated q and k, and v, in the dtype of x.
QueryKeyValue project_qkv(const Attention& attention, const ModelConfig& config, const at::Tensor& x_TD,
                          const RopeTables& rope, const AdapterPass& pass = {});
/// attended_THd -> what is added to the residual stream.
at::Tensor project_output(const Attention& attention, const ModelConfig& config, const at::Tensor& attended_THd,
                          const AdapterPass& pass = {});

/// Width of a head of q and k.
std::int64_t query_head_dim(const ModelConfig& config);

}  // namespace dagmoe
