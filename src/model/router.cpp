#include "model/router.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace dagmoe {
namespace {

// The K largest of every row, largest first; of equal scores the lower index first, which at::topk does not promise.
template <class T>
void select_top_k(const at::Tensor& scores_TE, at::Tensor& ids_TK) {
  const std::int64_t E = scores_TE.size(1), K = ids_TK.size(1);
  const T* scores = scores_TE.const_data_ptr<T>();
  std::int64_t* ids = ids_TK.mutable_data_ptr<std::int64_t>();
  at::parallel_for(0, scores_TE.size(0), 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* row = scores + t * E;
      std::int64_t* chosen = ids + t * K;
      std::int64_t num_chosen = 0;
      for (std::int64_t e = 0; e < E; ++e) {
        if (num_chosen == K && !(row[e] > row[chosen[K - 1]])) continue;
        std::int64_t place = num_chosen < K ? num_chosen++ : K - 1;
        for (; place > 0 && row[e] > row[chosen[place - 1]]; --place) chosen[place] = chosen[place - 1];
        chosen[place] = e;
      }
    }
  });
}

at::Tensor top_k_ids(const at::Tensor& scores_TE, std::int64_t K) {
  if (!scores_TE.is_cpu()) {
    return std::get<1>(at::sort(scores_TE, /*stable=*/true, /*dim=*/1, /*descending=*/true))
        .narrow(1, 0, K)
        .contiguous();
  }
  at::Tensor ids_TK = at::empty({scores_TE.size(0), K}, scores_TE.options().dtype(at::kLong));
  const at::Tensor scores = scores_TE.contiguous();
  scores.scalar_type() == at::kDouble ? select_top_k<double>(scores, ids_TK) : select_top_k<float>(scores, ids_TK);
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

Routing route(const at::Tensor& x_TD, const at::Tensor& router_ED, const MoeConfig& config) {
  const auto dtype = x_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Routing routing;
  routing.logits_TE = at::linear(x_TD.to(dtype), router_ED.to(dtype));
  at::Tensor scores_TE =
      config.router_score == RouterScore::kSoftmax ? at::softmax(routing.logits_TE, 1) : at::sigmoid(routing.logits_TE);
  // Logits and scores order alike, but rounding in the score function can merge two logits: the logits decide.
  at::Tensor order_TE = routing.logits_TE.detach();
  if (config.n_group > 0) {
    // Experts of the other groups get the score 0, not minus infinity, so that K of them can always be chosen.
    scores_TE = scores_TE * group_mask(scores_TE.detach(), config);
    order_TE = scores_TE.detach();
  }
  routing.expert_ids_TK = top_k_ids(order_TE, config.num_experts_per_tok);
  at::Tensor weights_TK = scores_TE.gather(1, routing.expert_ids_TK);
  if (config.norm_topk_prob) weights_TK = weights_TK / weights_TK.sum(1, /*keepdim=*/true);
  if (config.routed_scaling_factor != 1.0) weights_TK = weights_TK * config.routed_scaling_factor;
  routing.weights_TK = weights_TK;
  return routing;
}

}  // namespace dagmoe
