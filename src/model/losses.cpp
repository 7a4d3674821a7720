#include "model/losses.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

namespace dagmoe {

at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config) {
  const auto E = config.num_experts;
  at::Tensor probability_sum_E, count_E;
  std::int64_t num_rows = 0;
  for (const Routing& layer : routing) {
    at::Tensor p_TE = at::softmax(layer.logits_TE, 1);
    if (config.router_score == RouterScore::kSigmoid) {
      const at::Tensor s_TE = at::sigmoid(layer.logits_TE);
      p_TE = s_TE / s_TE.sum(1, /*keepdim=*/true);
    }
    const at::Tensor counts = at::bincount(layer.expert_ids_TK.flatten(), {}, E).to(p_TE.scalar_type());
    probability_sum_E = probability_sum_E.defined() ? probability_sum_E + p_TE.sum(0) : p_TE.sum(0);
    count_E = count_E.defined() ? count_E + counts : counts;
    num_rows += p_TE.size(0);
  }
  const double rows = static_cast<double>(std::max<std::int64_t>(num_rows, 1));
  return (count_E / rows * (probability_sum_E / rows)).sum() * static_cast<double>(E);
}

at::Tensor router_z_loss(const std::vector<Routing>& routing) {
  at::Tensor sum;
  for (const Routing& layer : routing) {
    const at::Tensor z = at::logsumexp(layer.logits_TE, {1}).square().mean();
    sum = sum.defined() ? sum + z : z;
  }
  return sum / static_cast<double>(routing.size());
}

ExpertUse expert_use(const std::vector<std::vector<std::int64_t>>& counts_LE) {
  ExpertUse use;
  std::int64_t num_dead = 0, num_experts = 0;
  for (const auto& counts : counts_LE) {
    const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
    const double mean = total / static_cast<double>(counts.size());
    if (mean > 0) use.max_over_mean += static_cast<double>(*std::max_element(counts.begin(), counts.end())) / mean;
    num_dead += std::count(counts.begin(), counts.end(), 0);
    num_experts += static_cast<std::int64_t>(counts.size());
  }
  if (!counts_LE.empty()) use.max_over_mean /= static_cast<double>(counts_LE.size());
  if (num_experts > 0) use.dead_fraction = static_cast<double>(num_dead) / static_cast<double>(num_experts);
  return use;
}

}  // namespace dagmoe
