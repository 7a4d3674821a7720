#pragma once

#include <string>
#include <vector>

#include "checkpoint/layout.h"
#include "model/config.h"

// What reading and writing an adapter folder share.
namespace dagmoe {

inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline constexpr const char* kAdapterWeights = "adapter_model.safetensors";
inline constexpr const char* kKeyPrefix = "base_model.model.";
/// peft's type of an adapter that has factors, and ours of one with parameters in full alone, which peft cannot open.
inline constexpr const char* kPeftType = "LORA";
inline constexpr const char* kFullType = "DAGMOE";
/// Of S'MoRE and SMoRA, which peft does not know.
inline constexpr const char* kSmoreType = "SMORE";
inline constexpr const char* kSmoraType = "SMORA";

/// transformers' name in memory of each of our parameters and what shares its tensor: what modules_to_save keys are
/// (experts fused). In the order of parameter_shapes(config).
std::vector<DiskTensor> memory_tensors(const ModelConfig& config);
/// The same for the module name of an adapter's target.
std::string module_on_disk(const ModelConfig& config, const std::string& module);

}  // namespace dagmoe
