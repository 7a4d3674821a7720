#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "data/prompt_template.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// What `--dtype` takes. Throws ConfigError for other words.
at::ScalarType compute_type(const std::string& name);

/// A model folder opened for inference: frozen weights, its tokenizer and what it says about chat.
struct ModelSession {
  Checkpoint checkpoint;
  Decoder model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatFormat> chat;
};
ModelSession open_model(const std::filesystem::path& folder, at::ScalarType dtype);

}  // namespace dagmoe
