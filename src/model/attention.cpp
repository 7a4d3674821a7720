// Letters: T tokens, D hidden_size, H heads, d head width, r rotated part of a head, R latent width.
#include "model/attention.h"

#include <ATen/ATen.h>

#include "kernels/ops.h"

namespace dagmoe {
namespace {

// One of q and k before rotation: projected, normalized, clipped.
at::Tensor project(const at::Tensor& x_TD, const Linear& projection, const at::Tensor& norm, const ModelConfig& config,
                   const AdapterPass& pass) {
  at::Tensor y_TO = linear(x_TD, projection, pass);
  if (norm.defined() && config.qk_norm == QkNorm::kWholeProjection) y_TO = rms_norm(y_TO, norm, config.rms_norm_eps);
  if (config.clip_qkv) y_TO = y_TO.clamp(-*config.clip_qkv, *config.clip_qkv);
  const at::Tensor y_THd = y_TO.view({x_TD.size(0), -1, config.head_dim});
  const bool per_head = norm.defined() && config.qk_norm == QkNorm::kPerHead;
  return per_head ? rms_norm(y_THd, norm, config.rms_norm_eps) : y_THd;
}

// DeepSeek-V2 rotates adjacent pairs (2i, 2i + 1); our kernel pairs (i, i + r/2). Reordering q and k alike leaves their
// products as they are.
at::Tensor rotate_adjacent(const at::Tensor& x_THr, const RopeTables& tables) {
  const auto r = x_THr.size(2);
  const at::Tensor halves_THr =
      x_THr.reshape({x_THr.size(0), x_THr.size(1), r / 2, 2}).transpose(2, 3).reshape(x_THr.sizes());
  return rope(halves_THr, tables.cos_Td2, tables.sin_Td2);
}

constexpr double kLatentNormEps = 1e-6;  // whatever the config says, as in transformers

QueryKeyValue latent_qkv(const Attention& attention, const ModelConfig& config, const at::Tensor& x_TD,
                         const RopeTables& tables, const AdapterPass& pass) {
  const MlaConfig& mla = *config.mla;
  const auto T = x_TD.size(0), H = config.num_attention_heads, d = query_head_dim(config);
  const auto nope = mla.qk_nope_head_dim, r = mla.qk_rope_head_dim;
  at::Tensor q_latent = x_TD;
  if (mla.q_lora_rank > 0)
    q_latent = rms_norm(linear(x_TD, attention.q_a_proj, pass), attention.q_a_norm_R, kLatentNormEps);
  const at::Tensor q_TO = linear(q_latent, mla.q_lora_rank > 0 ? attention.q_b_proj : attention.q_proj, pass);
  const at::Tensor q_THd = q_TO.view({T, H, d});
  const at::Tensor latent_TR = linear(x_TD, attention.kv_a_proj, pass);
  const at::Tensor kv_TR =
      rms_norm(latent_TR.narrow(1, 0, mla.kv_lora_rank).contiguous(), attention.kv_a_norm_R, kLatentNormEps);
  const at::Tensor kv_THx = linear(kv_TR, attention.kv_b_proj, pass).view({T, H, nope + mla.v_head_dim});
  const at::Tensor k_rotated_T1r = rotate_adjacent(latent_TR.narrow(1, mla.kv_lora_rank, r).unsqueeze(1), tables);
  const at::Tensor q_rotated_THr = rotate_adjacent(q_THd.narrow(2, nope, r), tables);

  QueryKeyValue result;
  result.q_THd = at::cat({q_THd.narrow(2, 0, nope), q_rotated_THr}, 2);
  result.k_THkd = at::cat({kv_THx.narrow(2, 0, nope), k_rotated_T1r.expand({T, H, r})}, 2);
  result.v_THkd = at::constant_pad_nd(kv_THx.narrow(2, nope, mla.v_head_dim), {0, d - mla.v_head_dim});
  if (config.rope.kind != RopeKind::kDefault && config.rope.mscale_all_dim) {
    const double mscale = yarn_mscale(config.rope.factor, *config.rope.mscale_all_dim);
    result.q_THd = result.q_THd * (mscale * mscale);
  }
  return result;
}

}  // namespace

std::int64_t query_head_dim(const ModelConfig& config) {
  return config.mla ? config.mla->qk_nope_head_dim + config.mla->qk_rope_head_dim : config.head_dim;
}

QueryKeyValue project_qkv(const Attention& attention, const ModelConfig& config, const at::Tensor& x_TD,
                          const RopeTables& tables, const AdapterPass& pass) {
  if (config.mla) return latent_qkv(attention, config, x_TD, tables, pass);
  const at::Tensor q_THd = project(x_TD, attention.q_proj, attention.q_norm, config, pass),
                   k_THkd = project(x_TD, attention.k_proj, attention.k_norm, config, pass),
                   v_THkd = project(x_TD, attention.v_proj, {}, config, pass);
  return {rope(q_THd, tables.cos_Td2, tables.sin_Td2), rope(k_THkd, tables.cos_Td2, tables.sin_Td2), v_THkd};
}

at::Tensor project_output(const Attention& attention, const ModelConfig& config, const at::Tensor& attended_THd,
                          const AdapterPass& pass) {
  const at::Tensor values = config.mla ? attended_THd.narrow(2, 0, config.mla->v_head_dim) : attended_THd;
  return linear(values.reshape({attended_THd.size(0), -1}), attention.o_proj, pass);
}

}  // namespace dagmoe
