#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "checkpoint/safetensors.h"

namespace dagmoe {

struct ImportReport {
  std::string source_kind;  ///< "GGUF v3, architecture llama, 210 Q4_1 + 61 F32 + 1 Q8_0"
  std::int64_t num_tensors = 0, num_parameters = 0, bytes_written = 0;
  std::string tokenizer;  ///< Tokenizer::description()
};

/// GGUF file or Hugging Face folder -> model folder (config.json, model.safetensors, tokenizer files,
/// generation_config.json), written atomically: `output` appears whole or not at all. q and k rows of architecture
/// llama are un-permuted (contracts.md 2.3). `dtype` is what float weights are stored as: F32 keeps dequantised values
/// exact; BF16 and F16 round to nearest even. Throws InputError for anything damaged or not supported; refuses an
/// existing `output` unless `force`.
struct ImportOptions {
  DType dtype = DType::kF32;
  bool force = false;
  std::function<void(std::int64_t done, std::int64_t total)> on_tensor;
};
ImportReport import_model(const std::filesystem::path& source, const std::filesystem::path& output,
                          const ImportOptions& options);

}  // namespace dagmoe
