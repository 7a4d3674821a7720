#pragma once

#include <cstdint>
#include <vector>

#include "finetune/run_setup.h"

namespace dagmoe {

/// One packed batch, as far as memory depends on it.
struct BatchShape {
  std::int64_t tokens = 0, supervised_tokens = 0;
  std::int64_t longest_sequence = 0;
};

/// Bytes of one layer's tensors in a training step.
struct LayerMemory {
  std::int64_t saved = 0;          ///< by the forward pass for the backward pass
  std::int64_t saved_combine = 0;  ///< of these, what the backward pass has freed when it reaches the experts
  std::int64_t copies = 0;         ///< bfloat16 copies of weights that train, saved too
  std::int64_t routing = 0;  ///< logits, weights and ids of a MoE layer: kept until the step's objective is summed
  std::int64_t forward = 0;  ///< most that the layer holds at once while it runs forward, its input included
  std::int64_t backward_combine = 0, backward_ffn = 0;  ///< gradients that exist at once in these parts of it
  std::int64_t gradients = 0;                           ///< fp32, of its parameters that train
  bool input_gradient = false;                          ///< something below the layer trains
  bool is_recorded = false;                             ///< it or something below it trains
};

/// What surrounds the layers.
struct EndsMemory {
  std::int64_t saved = 0;      ///< rotation tables, the last norm's input, the last hidden states and their gradient
  std::int64_t logits = 0;     ///< one chunk of logits and what is summed beside it, while the loss is computed
  std::int64_t head_copy = 0;  ///< bfloat16 copy of an output matrix that trains, while the loss is computed
  std::int64_t embedding_gradient = 0;  ///< most that the embedding's backward pass needs at once
  std::int64_t head_gradient = 0;       ///< fp32; of a tied matrix it waits for that of the embedding
};

struct StepActivations {
  std::vector<LayerMemory> layers;
  EndsMemory ends;
};

/// The account of a micro batch: what each operation of model/ and kernels/ops saves, by the rules that they follow.
/// Nothing is saved that no gradient needs: an operation's input only where its weight trains, a weight only where
/// something below trains.
StepActivations step_activations(const RunSetup& setup, const BatchShape& batch, bool is_bfloat16);

}  // namespace dagmoe
