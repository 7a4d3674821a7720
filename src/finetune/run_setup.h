#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/checkpoint.h"
#include "data/example_stream.h"
#include "finetune/recipe.h"
#include "finetune/train_config.h"
#include "peft/trainable.h"

namespace dagmoe {

/// Bytes that a parameter takes while it trains or lies frozen.
struct MemoryParts {
  std::int64_t mapped = 0;     ///< read from the file's own pages
  std::int64_t weights = 0;    ///< in the compute dtype: copies of frozen weights that the file has in another dtype
  std::int64_t master = 0;     ///< fp32 weights that train
  std::int64_t gradients = 0;  ///< fp32
  std::int64_t optimizer = 0;
  std::int64_t total() const { return mapped + weights + master + gradients + optimizer; }
  MemoryParts& operator+=(const MemoryParts& other);
};

struct RunParameter {
  std::string name;
  std::vector<std::int64_t> shape;
  bool is_trainable = false;
  double lr = 0.0, weight_decay = 0.0;  ///< peak; of what trains
  MemoryParts memory;
  std::int64_t num_elements() const;
};

/// What a recipe means for its checkpoint: decided on names and shapes, before weights or data are read.
struct RunSetup {
  Checkpoint source;
  ModelConfig config;                      ///< the checkpoint's, with what the recipe adds
  std::vector<RunParameter> parameters;    ///< in the order of the forward pass; then those of the adapter
  AdapterSpec adapter = {};                ///< without parts: none
  bool router_gets_gradient = false;       ///< something that trains lies before a router or in one
  std::vector<std::string> warnings = {};  ///< settings and rules without effect
  /// All layers or none, as the recipe says; where it has a budget, what choose_recompute finds (plan_recompute.h).
  LayersToRecompute recompute = false;
};

/// Throws ConfigError for what does not fit the model, InputError for a damaged checkpoint.
RunSetup prepare_run(const Recipe& recipe);
LoadOptions load_options(const Recipe& recipe, const RunSetup& setup);
/// The checkpoint's weights as load_options says, with the recipe's adapter attached.
Decoder load_run_model(const Recipe& recipe, const RunSetup& setup);
StepBatchConfig batch_config(const Recipe& recipe);
/// Without num_steps, which depends on the data.
TrainConfig train_config(const Recipe& recipe, const RunSetup& setup);
/// The sources of data.train or data.valid with the prompt templates that they name. Throws InputError for a missing
/// file.
std::vector<SourceConfig> data_sources(const Recipe& recipe, const std::vector<DataRecipe>& data);
ExampleStreamOptions train_stream_options(const Recipe& recipe);
/// For data.valid, or the part of data.train that data.valid_fraction sets aside.
ExampleStreamOptions valid_stream_options(const Recipe& recipe);

}  // namespace dagmoe
