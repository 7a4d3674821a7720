#pragma once

#include <cstdint>
#include <string>

#include "finetune/plan_activations.h"
#include "finetune/recipe.h"
#include "finetune/run_setup.h"

namespace dagmoe {

/// The micro batches of a run, as far as memory depends on them.
struct MicroBatches {
  BatchShape largest;
  bool several_a_step = false;         ///< gradients of one are then there while the next runs
  std::int64_t validation_tokens = 0;  ///< of a micro batch of the validation; 0: none
};
/// The most that they can be, whatever the training data: no step of the run is above it. `validation_records`: 0
/// without validation.
MicroBatches largest_micro_batches(const Recipe& recipe, std::int64_t validation_records);

/// Resident bytes of a run at its fullest moment.
struct MemoryPlan {
  std::int64_t mapped =
      0;  ///< pages of the model's files that are computed with as they are; the system takes them back at need
  std::int64_t weights = 0;      ///< copies in the compute type
  std::int64_t master = 0;       ///< fp32 weights that train
  std::int64_t gradients = 0;    ///< fp32
  std::int64_t optimizer = 0;    ///< its state, and what an update needs besides
  std::int64_t activations = 0;  ///< saved for the backward pass, and what a layer needs besides
  std::int64_t logits = 0;       ///< of one chunk of tokens, and gradients of the output matrix in the compute type
  std::int64_t program = 0;      ///< code, tokenizer, data
  std::string moment;            ///< "the backward pass, layer 29"
  std::int64_t total() const {
    return mapped + weights + master + gradients + optimizer + activations + logits + program;
  }
};

/// What the program takes without a model: its resident memory now, when the data are open and no weight is loaded, and
/// what training touches besides.
std::int64_t program_bytes();

/// An account of what exists at each moment of a step; the fullest moment is the plan. What it leaves out are holes
/// between blocks of memory, which freed tensors leave and which no later one fits. Made once for a run, and asked for
/// any choice of the layers that run again.
class MemoryAccount {
 public:
  /// `setup` must outlive it. `program_bytes`: what the program takes without a model.
  MemoryAccount(const Recipe& recipe, const RunSetup& setup, const MicroBatches& batches, std::int64_t program_bytes);
  MemoryPlan plan(const LayersToRecompute& recompute) const;
  /// What running a layer again frees until the backward pass reaches it.
  std::int64_t freed_by(std::size_t layer) const;

 private:
  const RunSetup& setup_;
  MicroBatches batches_;
  StepActivations step_, validation_;
  std::int64_t input_bytes_ = 0, update_bytes_ = 0;
  MemoryPlan resident_;  ///< what is there throughout
};

/// The account for `setup.recompute`.
MemoryPlan plan_memory(const Recipe& recipe, const RunSetup& setup, const MicroBatches& batches,
                       std::int64_t program_bytes);

}  // namespace dagmoe
