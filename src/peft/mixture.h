#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "peft/lora.h"
#include "peft/smora.h"
#include "peft/smore.h"

namespace dagmoe {

/// An adapter of a linear layer that is a mixture itself: y + delta(x), which no change of the layer's matrix gives.
struct MixtureAdapter {
  std::variant<Smore, Smora> tensors;
  std::uint64_t id = 0;  ///< hash_of the layer's name: what its choices are counted under
};

/// How often each rank of each SMoRA was chosen, by MixtureAdapter::id. Those of several passes add up.
using RankCounts = std::map<std::uint64_t, std::vector<std::int64_t>>;

/// What the mixtures of a model did in a forward pass.
struct AdapterUse {
  double balance_sum = 0.0;  ///< of smore_balance_loss, over all S'MoREs
  RankCounts rank_counts;
};
void add_counts(RankCounts& sum, const RankCounts& counts);

/// y_XO + delta(x) of each. With pass.balance_weight the backward pass adds the gradient of that many times
/// smore_balance_loss, as if it were a term of the objective (its value never appears there): the loss needs no way out
/// of the layer, and a layer that is computed again in the backward pass has its gradient too. DeepSeek-V2's published
/// program adds its auxiliary loss in this manner.
at::Tensor add_mixtures(const at::Tensor& y_XO, const at::Tensor& x_XI, const std::vector<MixtureAdapter>& adapters,
                        const AdapterPass& pass);

/// A tensor of an adapter by its name below the layer ("smora_A.weight").
struct AdapterTensor {
  std::string name;
  at::Tensor* tensor;
  bool is_buffer = false;  ///< saved with the others, but no gradient ever reaches it: SMoRA's bias
};
std::vector<AdapterTensor> adapter_tensors(MixtureAdapter& adapter);

}  // namespace dagmoe
