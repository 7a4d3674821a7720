#include "checkpoint/upcycle_experts.h"

#include <ATen/ATen.h>
#include <ATen/ops/linalg_svd.h>

#include <array>
#include <cmath>

namespace dagmoe {
namespace {

constexpr double kUniformRouterStd = 0.02;  // of the Drop-Upcycling scripts
constexpr double kSpriScale = 1e-3;         // rho of arXiv:2606.16456
// The paper gives no size for the noise that tells the experts of a group apart; this share of their own size is ours.
constexpr double kSpriNoise = 1e-2;

at::Tensor normal(at::IntArrayRef shape, double std, at::Generator& generator) {
  return at::empty(shape, at::kFloat).normal_(0.0, std, generator);
}

at::Tensor uniform_router(std::int64_t E, std::int64_t D, at::Generator& generator) {
  const double bound = kUniformRouterStd * std::sqrt(3.0);
  return at::empty({E, D}, at::kFloat).uniform_(-bound, bound, generator);
}

/// The three matrices of one expert, hidden units first: down is held transposed while it is worked on.
struct Ffn {
  std::array<at::Tensor, 3> matrices_FD;  // gate, up, down transposed
};

Ffn dense_ffn(const DecoderLayer& dense) {
  return {{dense.dense.gate_proj.weight, dense.dense.up_proj.weight, dense.dense.down_proj.weight.t()}};
}

void set_expert(DecoderLayer& layer, std::int64_t expert, const Ffn& ffn) {
  const auto e = static_cast<std::size_t>(expert);
  layer.experts.gate_FD[e] = ffn.matrices_FD[0].contiguous();
  layer.experts.up_FD[e] = ffn.matrices_FD[1].contiguous();
  layer.experts.down_DF[e] = ffn.matrices_FD[2].t().contiguous();
}

at::Tensor random_units(std::int64_t F, std::int64_t count, at::Generator& generator) {
  return at::randperm(F, generator, at::kLong).narrow(0, 0, count);
}

void add_noise(Ffn& ffn, double std, at::Generator& generator) {
  const auto F = ffn.matrices_FD[0].size(0), D = ffn.matrices_FD[0].size(1);
  for (at::Tensor& matrix_FD : ffn.matrices_FD) {
    const at::Tensor units = random_units(F, F / 2, generator);
    matrix_FD = matrix_FD.index_add(0, units, normal({F / 2, D}, std, generator));
  }
}

void permute_and_drop(Ffn& ffn, const UpcycleConfig& config, at::Generator& generator) {
  const auto F = ffn.matrices_FD[0].size(0), D = ffn.matrices_FD[0].size(1);
  const auto count = static_cast<std::int64_t>(std::llround(config.drop_fraction * static_cast<double>(F)));
  const at::Tensor order = at::randperm(F, generator, at::kLong);
  at::Tensor units = random_units(F, count, generator);
  for (at::Tensor& matrix_FD : ffn.matrices_FD) {
    matrix_FD = matrix_FD.index_select(0, order);
    if (count > 0) {
      const at::Tensor replaced = matrix_FD.index_select(0, units);
      const at::Tensor drawn = normal({count, D}, 1.0, generator) * replaced.std(/*unbiased=*/false) + replaced.mean();
      matrix_FD = matrix_FD.index_copy(0, units, drawn);
    }
    if (!config.drop_shared_set) units = random_units(F, count, generator);
  }
}

void make_virtual_groups(const UpcycleCounts& counts, const DecoderLayer& dense, at::Generator& generator,
                         DecoderLayer& layer) {
  const auto S = counts.num_shards, F = dense.dense.gate_proj.weight.size(0) / S;
  // The rows of one copy's shards are the same row, so their logits tie and the top K picks whole copies.
  const at::Tensor rows =
      normal({counts.num_experts / S, dense.dense.gate_proj.weight.size(1)}, counts.router_std, generator);
  layer.router.weight = rows.repeat_interleave(S, 0).contiguous();
  for (std::int64_t expert = 0; expert < counts.num_experts; ++expert) {
    const auto e = static_cast<std::size_t>(expert);
    const std::int64_t begin = (expert % S) * F;  // expert c * S + s holds shard s of copy c
    layer.experts.gate_FD[e] = dense.dense.gate_proj.weight.narrow(0, begin, F);
    layer.experts.up_FD[e] = dense.dense.up_proj.weight.narrow(0, begin, F);
    layer.experts.down_DF[e] = dense.dense.down_proj.weight.narrow(1, begin, F) * static_cast<double>(S);
  }
}

// Routed W_down of group g: a block of W_down's singular directions, scaled to rho times its norm. The groups get the
// blocks in descending order of singular value.
void make_spri(const UpcycleCounts& counts, const DecoderLayer& dense, at::Generator& generator, DecoderLayer& layer) {
  const at::Tensor& down_DF = dense.dense.down_proj.weight;
  const auto [U, s, Vh] = at::linalg_svd(down_DF, /*full_matrices=*/false);
  const std::int64_t num_groups = counts.num_experts / counts.num_experts_per_tok, rank = s.size(0);
  layer.shared_expert = dense.dense;
  layer.router.weight = normal({counts.num_experts, down_DF.size(0)}, counts.router_std, generator);
  for (std::int64_t group = 0; group < num_groups; ++group) {
    const std::int64_t begin = group * rank / num_groups, size = (group + 1) * rank / num_groups - begin;
    const at::Tensor block_DF =
        at::matmul(U.narrow(1, begin, size) * s.narrow(0, begin, size), Vh.narrow(0, begin, size));
    const double alpha = kSpriScale * down_DF.norm().item<double>() / (block_DF.norm().item<double>() + 1e-12);
    const at::Tensor scaled_DF = block_DF * alpha;
    const double rms = scaled_DF.square().mean().sqrt().item<double>();
    for (std::int64_t i = 0; i < counts.num_experts_per_tok; ++i) {
      const auto e = static_cast<std::size_t>(group * counts.num_experts_per_tok + i);
      layer.experts.gate_FD[e] = dense.dense.gate_proj.weight;
      layer.experts.up_FD[e] = dense.dense.up_proj.weight;
      layer.experts.down_DF[e] = scaled_DF + normal(scaled_DF.sizes(), kSpriNoise * rms, generator);
    }
  }
}

}  // namespace

void make_experts(const UpcycleConfig& config, const UpcycleCounts& counts, const DecoderLayer& dense,
                  at::Generator& generator, DecoderLayer& layer) {
  if (config.method == UpcycleMethod::kVirtualGroup) return make_virtual_groups(counts, dense, generator, layer);
  if (config.method == UpcycleMethod::kSpri) return make_spri(counts, dense, generator, layer);
  layer.router.weight = uniform_router(counts.num_experts, dense.dense.gate_proj.weight.size(1), generator);
  for (std::int64_t e = 0; e < counts.num_experts; ++e) {
    Ffn ffn = dense_ffn(dense);
    if (config.method == UpcycleMethod::kCopyNoise) add_noise(ffn, config.noise_std, generator);
    if (config.method == UpcycleMethod::kDrop) permute_and_drop(ffn, config, generator);
    set_expert(layer, e, ffn);
  }
}

}  // namespace dagmoe
