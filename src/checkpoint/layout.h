#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/safetensors_folder.h"
#include "model/config.h"

namespace dagmoe {

/// How the experts of a layer lie in the files (contracts.md 1.4): three tensors an expert, or the two of transformers
/// 5 that hold all of them, gate_up_proj [E, 2F, D] (rows of gate before those of up) and down_proj [E, D, F].
enum class ExpertLayout { kPerExpert, kFused };
const char* layout_name(ExpertLayout layout);

/// A tensor of the files and the parameters that lie in it one after another, all of one size: places in
/// parameter_shapes(config).
struct DiskTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<std::size_t> parameters;
};
/// In the order of parameter_shapes(config).
std::vector<DiskTensor> disk_tensors(const ModelConfig& config, ExpertLayout layout);

/// The layout of a folder: fused when it holds any tensor of that layout.
ExpertLayout find_layout(const SafetensorsFolder& weights);

/// All that does not fit between the tensors of a folder and those a model needs: missing, of another shape, of no
/// float type, not expected. A tied head may be there when it equals the embedding, and so may the inverse frequencies
/// of old Llama folders.
std::vector<std::string> layout_problems(const SafetensorsFolder& weights, const ModelConfig& config,
                                         ExpertLayout layout);

}  // namespace dagmoe
