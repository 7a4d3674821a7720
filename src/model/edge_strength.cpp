// Letters: T tokens, n tokens of a chunk, K chosen experts, E experts, G DAG node width.
#include "model/edge_strength.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace dagmoe {
namespace {

constexpr std::int64_t kPairElementsAtOnce = std::int64_t{1} << 18;  // n K K G doubles: 2 MB a temporary

// ||m_ij||_2 for a few tokens.
at::Tensor pair_norms(const at::Tensor& abce_nK4G) {
  const auto parts = abce_nK4G.to(at::kDouble).chunk(4, 2);
  const at::Tensor gate_nKKG = at::silu(parts[0].unsqueeze(2) + parts[1].unsqueeze(1));
  const at::Tensor value_nKKG = parts[2].unsqueeze(2) + parts[3].unsqueeze(1);
  return (gate_nKKG * value_nKKG).square().sum(3).sqrt();
}

// expert of slot i * E + expert of slot j
at::Tensor pair_places(const at::Tensor& expert_ids_TK, std::int64_t E) {
  return expert_ids_TK.unsqueeze(2) * E + expert_ids_TK.unsqueeze(1);
}

void add_pairs(IterationEdges& edges, const at::Tensor& abce_TK4G, const at::Tensor& places_TKK) {
  const auto T = abce_TK4G.size(0), K = abce_TK4G.size(1), G = abce_TK4G.size(2) / 4;
  const std::int64_t chunk = std::max<std::int64_t>(1, kPairElementsAtOnce / (K * K * G));
  for (std::int64_t begin = 0; begin < T; begin += chunk) {
    const std::int64_t n = std::min(chunk, T - begin);
    const at::Tensor norms_nKK = pair_norms(abce_TK4G.narrow(0, begin, n));
    edges.sum_EE.view(-1).index_add_(0, places_TKK.narrow(0, begin, n).reshape(-1), norms_nKK.reshape(-1));
    edges.slot_KK += norms_nKK.sum(0);
  }
}

EdgeStrength empty_strength(const Decoder& model) {
  EdgeStrength edges;
  if (!model.config.dag || !model.config.moe) return edges;
  const std::int64_t E = model.config.moe->num_experts, K = model.config.moe->num_experts_per_tok;
  for (std::size_t n = 0; n < model.layers.size(); ++n) {
    if (model.layers[n].dag.empty()) continue;
    LayerEdges layer{static_cast<std::int64_t>(n), at::zeros({E, E}, at::kLong), {}};
    for (std::size_t l = 0; l < model.layers[n].dag.size(); ++l)
      layer.iterations.push_back({at::zeros({E, E}, at::kDouble), at::zeros({K, K}, at::kDouble)});
    edges.layers.push_back(std::move(layer));
  }
  return edges;
}

double rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return std::strtod(text, nullptr);
}

Json matrix_json(const at::Tensor& matrix) {
  Json rows = Json::array();
  const at::Tensor values = matrix.contiguous();
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    Json row = Json::array();
    for (std::int64_t j = 0; j < values.size(1); ++j) {
      if (values.scalar_type() == at::kLong) {
        row.push_back(values.const_data_ptr<std::int64_t>()[i * values.size(1) + j]);
      } else {
        row.push_back(rounded(values.const_data_ptr<double>()[i * values.size(1) + j]));
      }
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

EdgeStrength edge_strength(const Decoder& model, std::span<const ModelInput> batches) {
  const at::NoGradGuard no_grad;
  EdgeStrength edges = empty_strength(model);
  if (edges.layers.empty()) return edges;
  const std::int64_t E = model.config.moe->num_experts;
  const auto on_combine = [&](std::int64_t layer_index, const CombineInput& input, const Routing& routing) {
    const auto layer = std::ranges::find(edges.layers, layer_index, &LayerEdges::layer);
    if (layer == edges.layers.end()) return;
    const at::Tensor places_TKK = pair_places(routing.expert_ids_TK, E);
    layer->count_EE += at::bincount(places_TKK.reshape(-1), {}, E * E).view({E, E});
    combine_experts(
        input, model.layers[static_cast<std::size_t>(layer_index)].dag, &*model.config.dag, model.config.rms_norm_eps,
        [&](std::size_t l, const at::Tensor& abce_TK4G) { add_pairs(layer->iterations[l], abce_TK4G, places_TKK); });
  };
  for (const ModelInput& batch : batches) {
    model.forward(batch, {.on_combine = on_combine});
    edges.num_tokens += batch.input_ids_T.size(0);
  }
  for (LayerEdges& layer : edges.layers) {
    for (IterationEdges& iteration : layer.iterations)
      iteration.slot_KK /= static_cast<double>(std::max<std::int64_t>(1, edges.num_tokens));
  }
  return edges;
}

at::Tensor mean_strength(const LayerEdges& layer, const IterationEdges& iteration) {
  return iteration.sum_EE / layer.count_EE.clamp_min(1);
}

double symmetric_share(const at::Tensor& strength_XX) {
  const double whole = strength_XX.square().sum().item<double>();
  if (whole == 0) return 1.0;
  return ((strength_XX + strength_XX.t()) / 2).square().sum().item<double>() / whole;
}

double self_edge_share(const at::Tensor& slot_KK) {
  const double whole = slot_KK.sum().item<double>();
  return whole == 0 ? 0.0 : slot_KK.trace().item<double>() / whole;
}

Json edge_strength_json(const EdgeStrength& edges) {
  Json layers = Json::array();
  for (const LayerEdges& layer : edges.layers) {
    Json iterations = Json::array();
    for (const IterationEdges& iteration : layer.iterations) {
      const at::Tensor mean_EE = mean_strength(layer, iteration);
      iterations.push_back({{"mean", matrix_json(mean_EE)},
                            {"slots", matrix_json(iteration.slot_KK)},
                            {"symmetric_share", symmetric_share(mean_EE)},
                            {"self_edge_share", self_edge_share(iteration.slot_KK)}});
    }
    layers.push_back(
        {{"layer", layer.layer}, {"count", matrix_json(layer.count_EE)}, {"iterations", std::move(iterations)}});
  }
  return {{"tokens", edges.num_tokens}, {"layers", std::move(layers)}};
}

}  // namespace dagmoe
