#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// What `--dtype` takes. Throws ConfigError for other words.
at::ScalarType compute_type(const std::string& name);

/// A model folder opened for inference: frozen weights, and its tokenizer.
struct ModelSession {
  Checkpoint checkpoint;
  Decoder model;
  std::unique_ptr<Tokenizer> tokenizer;
};
/// With `adapters` on it, each checked against this base.
ModelSession open_model(const std::filesystem::path& folder, at::ScalarType dtype,
                        const std::vector<std::string>& adapters = {});

}  // namespace dagmoe
