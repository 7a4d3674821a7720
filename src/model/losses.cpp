#include "model/losses.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

namespace {

// The probabilities whose mean is P: of sigmoid scores, their share of the token's sum.
at::Tensor router_probabilities(const at::Tensor& logits_TE, const MoeConfig& config) {
  if (config.router_score == RouterScore::kSoftmax) return at::softmax(logits_TE, 1);
  const at::Tensor s_TE = at::sigmoid(logits_TE);
  return s_TE / s_TE.sum(1, /*keepdim=*/true);
}

std::int64_t num_experts_of(const std::vector<Routing>& routing) { return routing.front().logits_TE.size(1); }

// f_e of tokens that were counted `num_rows` times.
at::Tensor frequencies(const std::vector<std::int64_t>& counts_E, std::int64_t num_rows,
                       const at::TensorOptions& options) {
  const double rows = static_cast<double>(std::max<std::int64_t>(num_rows, 1));
  std::vector<double> frequency_E;
  for (const std::int64_t count : counts_E) frequency_E.push_back(static_cast<double>(count) / rows);
  return at::tensor(frequency_E, at::kDouble).to(options);
}

void require_layers(const std::vector<Routing>& routing, const ExpertCounts& counts) {
  if (routing.size() == counts.counts_LE.size()) return;
  throw InternalError(str("balance loss: counts of ", counts.counts_LE.size(), " layers for ", routing.size()));
}

}  // namespace

ExpertCounts& ExpertCounts::operator+=(const ExpertCounts& other) {
  if (counts_LE.empty()) counts_LE.resize(other.counts_LE.size());
  for (std::size_t layer = 0; layer < other.counts_LE.size(); ++layer) {
    const auto& theirs = other.counts_LE[layer];
    auto& ours = counts_LE.at(layer);
    ours.resize(theirs.size(), 0);
    std::transform(ours.begin(), ours.end(), theirs.begin(), ours.begin(), std::plus<>());
  }
  num_tokens += other.num_tokens;
  return *this;
}

ExpertCounts expert_counts(const std::vector<Routing>& routing, std::int64_t num_experts) {
  ExpertCounts counts;
  for (const Routing& layer : routing) {
    auto& counts_E = counts.counts_LE.emplace_back(static_cast<std::size_t>(num_experts), 0);
    const at::Tensor ids = layer.expert_ids_TK.to(at::kCPU).contiguous();
    const std::int64_t* id = ids.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < ids.numel(); ++i) ++counts_E.at(static_cast<std::size_t>(id[i]));
    counts.num_tokens = ids.size(0);
  }
  return counts;
}

at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config,
                               const ExpertCounts& counts) {
  require_layers(routing, counts);
  const auto E = num_experts_of(routing);
  std::vector<std::int64_t> pooled_E(static_cast<std::size_t>(E), 0);
  at::Tensor probability_sum_E;
  std::int64_t num_rows = 0;
  for (std::size_t layer = 0; layer < routing.size(); ++layer) {
    const auto& counts_E = counts.counts_LE[layer];
    std::transform(pooled_E.begin(), pooled_E.end(), counts_E.begin(), pooled_E.begin(), std::plus<>());
    const at::Tensor p_TE = router_probabilities(routing[layer].logits_TE, config);
    probability_sum_E = probability_sum_E.defined() ? probability_sum_E + p_TE.sum(0) : p_TE.sum(0);
    num_rows += p_TE.size(0);
  }
  const auto num_layers = static_cast<std::int64_t>(routing.size());
  const at::Tensor f_E = frequencies(pooled_E, counts.num_tokens * num_layers, probability_sum_E.options());
  const double scale = static_cast<double>(E) / static_cast<double>(std::max<std::int64_t>(num_rows, 1));
  return (f_E * probability_sum_E).sum() * scale;
}

at::Tensor load_balancing_loss(const std::vector<Routing>& routing, const MoeConfig& config) {
  return load_balancing_loss(routing, config, expert_counts(routing, num_experts_of(routing)));
}

RouterSums& RouterSums::operator+=(const RouterSums& other) {
  if (probability_sums_LE.empty()) {
    probability_sums_LE = other.probability_sums_LE;
    return *this;
  }
  for (std::size_t layer = 0; layer < probability_sums_LE.size(); ++layer) {
    auto& ours = probability_sums_LE[layer];
    const auto& theirs = other.probability_sums_LE.at(layer);
    std::transform(ours.begin(), ours.end(), theirs.begin(), ours.begin(), std::plus<>());
  }
  return *this;
}

RouterSums router_sums(const std::vector<Routing>& routing, const MoeConfig& config) {
  const at::NoGradGuard no_grad;
  RouterSums sums;
  for (const Routing& layer : routing) {
    const at::Tensor sum_E = router_probabilities(layer.logits_TE, config).sum(0, false, at::kDouble).to(at::kCPU);
    const double* values = sum_E.const_data_ptr<double>();
    sums.probability_sums_LE.emplace_back(values, values + sum_E.numel());
  }
  return sums;
}

double balance_of(const RouterSums& sums, const ExpertCounts& counts) {
  const std::size_t L = sums.probability_sums_LE.size(), E = L == 0 ? 0 : sums.probability_sums_LE[0].size();
  const double rows = static_cast<double>(std::max<std::int64_t>(counts.num_tokens, 1)) * static_cast<double>(L);
  double total = 0.0;
  for (std::size_t e = 0; e < E; ++e) {
    double count = 0.0, probability = 0.0;
    for (std::size_t layer = 0; layer < L; ++layer) {
      count += static_cast<double>(counts.counts_LE.at(layer).at(e));
      probability += sums.probability_sums_LE[layer][e];
    }
    total += count / rows * (probability / rows);
  }
  return total * static_cast<double>(E);
}

std::vector<double> layer_balance(const RouterSums& sums, const ExpertCounts& counts) {
  std::vector<double> values;
  for (std::size_t layer = 0; layer < sums.probability_sums_LE.size(); ++layer) {
    const RouterSums one{{sums.probability_sums_LE[layer]}};
    values.push_back(balance_of(one, {{counts.counts_LE.at(layer)}, counts.num_tokens}));
  }
  return values;
}

at::Tensor router_z_loss(const std::vector<Routing>& routing) {
  at::Tensor sum;
  for (const Routing& layer : routing) {
    const at::Tensor z = at::logsumexp(layer.logits_TE, {1}).square().mean();
    sum = sum.defined() ? sum + z : z;
  }
  return sum / static_cast<double>(routing.size());
}

bool has_gradient(const std::vector<Routing>& routing) {
  return std::any_of(routing.begin(), routing.end(),
                     [](const Routing& layer) { return layer.logits_TE.requires_grad(); });
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
