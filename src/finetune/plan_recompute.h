#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "finetune/plan_memory.h"
#include "finetune/recipe.h"
#include "finetune/run_setup.h"

namespace dagmoe {

/// What is added to a memory account before it is held against a budget: holes between blocks of memory and what large
/// products touch besides their tensors, which it leaves out. Chosen so that the runs of bench/README.md stay below.
std::int64_t memory_margin(const RunSetup& setup, const MemoryPlan& plan);

/// Which layers run again in the backward pass instead of keeping what they need for it, and what comes of it.
struct RecomputeChoice {
  LayersToRecompute recompute = false;
  std::vector<std::int64_t> layers;  ///< those, rising
  std::int64_t num_reached = 0;      ///< layers that the backward pass reaches; the others keep nothing
  std::int64_t num_layers = 0;
  std::int64_t most_bytes =
      0;  ///< of the run with the largest micro batches that the recipe allows, memory_margin included
};

/// With memory.budget_gb: layers whose running again keeps the run within it, whatever its data, with the fewest
/// operations (of layers of several kinds with at most one layer more than that). Without: all or none, as the recipe
/// says. What a run computes does not depend on the choice. `validation_records`: 0 without validation;
/// `program_bytes`: plan_memory.h. Throws ConfigError, with what would help, when the budget is too small for a run
/// that keeps nothing.
RecomputeChoice choose_recompute(const Recipe& recipe, const RunSetup& setup, std::int64_t validation_records,
                                 std::int64_t program_bytes);

/// One line for a person: "memory.budget_gb 3: the backward pass runs 12 of 30 layers again (0..11); at most 2.91 GB of
/// memory"; empty where neither a budget is set nor a layer runs again.
std::string recompute_text(const Recipe& recipe, const RecomputeChoice& choice);

}  // namespace dagmoe
