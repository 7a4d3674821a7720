#include "model/router.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "peft/mixture_support.h"

namespace dagmoe {
namespace {

// The K largest of every row, largest first; of equal scores the larger tie breaker and then the lower index first,
// which at::topk does not promise. `ties_TE` may be undefined.
template <class T>
void select_top_k(const at::Tensor& scores_TE, const at::Tensor& ties_TE, at::Tensor& ids_TK) {
  const std::int64_t E = scores_TE.size(1), K = ids_TK.size(1);
  const T* scores = scores_TE.const_data_ptr<T>();
  const T* all_ties = ties_TE.defined() ? ties_TE.const_data_ptr<T>() : nullptr;
  std::int64_t* ids = ids_TK.mutable_data_ptr<std::int64_t>();
  at::parallel_for(0, scores_TE.size(0), 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* row = scores + t * E;
      const T* ties = all_ties == nullptr ? row : all_ties + t * E;
      const auto is_better = [row, ties](std::int64_t a, std::int64_t b) {
        return row[a] > row[b] || (row[a] == row[b] && ties[a] > ties[b]);
      };
      std::int64_t* chosen = ids + t * K;
      std::int64_t num_chosen = 0;
      for (std::int64_t e = 0; e < E; ++e) {
        if (num_chosen == K && !is_better(e, chosen[K - 1])) continue;
        std::int64_t place = num_chosen < K ? num_chosen++ : K - 1;
        for (; place > 0 && is_better(e, chosen[place - 1]); --place) chosen[place] = chosen[place - 1];
        chosen[place] = e;
      }
    }
  });
}

at::Tensor sorted_ids(const at::Tensor& scores_TE) {
  return std::get<1>(at::sort(scores_TE, /*stable=*/true, /*dim=*/1, /*descending=*/true));
}

at::Tensor top_k_ids(const at::Tensor& scores_TE, std::int64_t K, const at::Tensor& ties_TE = {}) {
  if (!scores_TE.is_cpu()) {
    if (!ties_TE.defined()) return sorted_ids(scores_TE).narrow(1, 0, K).contiguous();
    const at::Tensor by_tie_TE = sorted_ids(ties_TE);
    return by_tie_TE.gather(1, sorted_ids(scores_TE.gather(1, by_tie_TE)).narrow(1, 0, K));
  }
  at::Tensor ids_TK = at::empty({scores_TE.size(0), K}, scores_TE.options().dtype(at::kLong));
  const at::Tensor scores = scores_TE.contiguous(), ties = ties_TE.defined() ? ties_TE.contiguous() : at::Tensor();
  scores.scalar_type() == at::kDouble ? select_top_k<double>(scores, ties, ids_TK)
                                      : select_top_k<float>(scores, ties, ids_TK);
  return ids_TK;
}

// 1 where an expert's group is one of the topk_group groups with the best expert (DeepSeek-V2).
at::Tensor group_mask(const at::Tensor& scores_TE, const MoeConfig& config) {
  const std::int64_t T = scores_TE.size(0), E = scores_TE.size(1), n = config.n_group;
  const at::Tensor best_Tn = std::get<0>(scores_TE.view({T, n, E / n}).max(2));
  const at::Tensor mask_Tn = at::zeros_like(best_Tn).scatter_(1, top_k_ids(best_Tn, config.topk_group), 1.0);
  return mask_Tn.unsqueeze(2).expand({T, n, E / n}).reshape({T, E});
}

}  // namespace

Routing route(const at::Tensor& x_TD, const at::Tensor& router_ED, const MoeConfig& config,
              const RouterChoice& choice) {
  const auto dtype = x_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Routing routing;
  routing.logits_TE = router_logits(x_TD, router_ED.to(dtype));
  at::Tensor scores_TE =
      config.router_score == RouterScore::kSoftmax ? at::softmax(routing.logits_TE, 1) : at::sigmoid(routing.logits_TE);
  // Logits and scores order alike, but rounding in the score function can merge two logits: the logits decide.
  const at::Tensor logits_TE = routing.logits_TE.detach();
  const bool has_bias = choice.bias_E.defined() && choice.bias_E.count_nonzero().item<std::int64_t>() > 0;
  at::Tensor order_TE = has_bias ? scores_TE.detach() + choice.bias_E.to(dtype) : logits_TE;
  if (config.n_group > 0) {
    const at::Tensor mask_TE = group_mask(has_bias ? order_TE : scores_TE.detach(), config);
    // Experts of the other groups get the score 0, so that K of them can always be chosen; with a bias, whose sums may
    // be below 0, they come last.
    scores_TE = scores_TE * mask_TE;
    order_TE = has_bias ? order_TE.masked_fill(mask_TE == 0, -INFINITY) : scores_TE.detach();
  }
  routing.expert_ids_TK = choice.expert_ids_TK.defined()
                              ? choice.expert_ids_TK
                              : top_k_ids(order_TE, config.num_experts_per_tok, has_bias ? logits_TE : at::Tensor());
  at::Tensor weights_TK = scores_TE.gather(1, routing.expert_ids_TK);
  if (config.norm_topk_prob) weights_TK = weights_TK / weights_TK.sum(1, /*keepdim=*/true);
  if (config.routed_scaling_factor != 1.0) weights_TK = weights_TK * config.routed_scaling_factor;
  routing.weights_TK = weights_TK;
  return routing;
}

at::Tensor updated_router_bias(const at::Tensor& bias_E, const std::vector<std::int64_t>& counts_E, double rate) {
  return balanced_bias(bias_E, counts_E, rate);
}

}  // namespace dagmoe
