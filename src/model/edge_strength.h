#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/json.h"
#include "model/decoder.h"

namespace dagmoe {

/// The learned structure of one DAG iteration (arXiv:2606.01062 appendix C, method.md 2.7). The strength of source j on
/// target i is ||m_ij||_2, the norm of the message of eq. 10; rows are targets, columns sources; all double.
struct IterationEdges {
  at::Tensor sum_EE;   ///< summed over tokens and slots, scattered to [expert of slot i, expert of slot j]
  at::Tensor slot_KK;  ///< mean over tokens, slots in the router's order
};

struct LayerEdges {
  std::int64_t layer = 0;
  at::Tensor count_EE;  ///< int64: tokens in which both experts were chosen; the diagonal, in which the expert was
  std::vector<IterationEdges> iterations;
};

/// What a model's DAGs do with the tokens of a few batches. `layers` is empty for a model without a DAG.
struct EdgeStrength {
  std::int64_t num_tokens = 0;
  std::vector<LayerEdges> layers;
};

/// One forward pass over the batches, without gradients; pairs are formed for a few tokens at a time. Uses the
/// arithmetic of the model's compute dtype up to z, double from there.
EdgeStrength edge_strength(const Decoder& model, std::span<const ModelInput> batches);

/// Mean strength where both experts were chosen, 0 where they never were.
at::Tensor mean_strength(const LayerEdges& layer, const IterationEdges& iteration);
/// Share of ||M||_F^2 that lies in (M + M^T) / 2: 1 for a symmetric matrix, 0 for an antisymmetric one, about 1/2 for
/// independent entries of mean zero. 1 for a zero matrix.
double symmetric_share(const at::Tensor& strength_XX);
/// Share of the summed strength that lies on self edges; 1/K for uniform edges. 0 for a zero matrix.
double self_edge_share(const at::Tensor& slot_KK);

/// {"tokens", "layers": [{"layer", "count": [[..]], "iterations": [{"mean": [[..]], "slots": [[..]],
/// "symmetric_share", "self_edge_share"}]}]}: symmetric_share of the mean over experts, self_edge_share of the slots.
/// Means have six significant digits.
Json edge_strength_json(const EdgeStrength& edges);

}  // namespace dagmoe
