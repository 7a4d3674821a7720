#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "model/router.h"

namespace dagmoe {

/// What a layer gives: the stream behind it and, of a MoE layer, its routing; of others that is undefined.
struct LayerOutput {
  at::Tensor hidden_TD;
  Routing routing;
};

/// f(inputs), of which only the inputs are kept: the backward pass runs f once more. For a part whose intermediate
/// tensors are large and cheap to form. `f` must give the same for the same inputs.
using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;
at::Tensor run_again_in_backward(TensorFunction f, const std::vector<at::Tensor>& inputs);

/// Which layers of a model run again in the backward pass: all, none, or the marked ones.
class LayersToRecompute {
 public:
  LayersToRecompute(bool all = false) : all_(all) {}
  explicit LayersToRecompute(std::vector<bool> marked) : marked_(std::move(marked)) {}
  bool operator()(std::int64_t layer) const {
    const auto n = static_cast<std::size_t>(layer);
    return all_ || (n < marked_.size() && marked_[n]);
  }

 private:
  bool all_ = false;
  std::vector<bool> marked_;
};

/// A layer of which only the input and the expert ids are kept for the backward pass.
struct RecomputedLayer {
  /// The layer's output for an input. Called at once.
  std::function<LayerOutput(const at::Tensor& hidden_TD)> forward;
  /// The same, with the experts that `forward` chose. Called in the backward pass, so what it refers to must live until
  /// then.
  std::function<LayerOutput(const at::Tensor& hidden_TD, const at::Tensor& expert_ids_TK)> forward_again;
  std::vector<at::Tensor> trained;  ///< all tensors that it reads and that require grad
  bool router_trains = false;       ///< whether the router's logits depend on any of them
};

/// layer.forward(hidden_TD), whose outputs carry gradients to `hidden_TD` and `trained` as if it had been recorded. The
/// backward pass runs the layer once more (arXiv:1604.06174) with the saved choice of experts. Where nothing needs a
/// gradient nothing is kept.
LayerOutput run_recomputed(const RecomputedLayer& layer, const at::Tensor& hidden_TD);

}  // namespace dagmoe
