// One small model and a few folders that many tests share.
#pragma once
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/decoder.h"

namespace dagmoe::testing {

/// 2 layers, D = 16, 4 heads of 4 over 2 kv heads, E = 4, K = 2, F = 12, G = 6, L = 2, V = 64.
inline ModelConfig tiny_config(bool with_dag = true) {
  ModelConfig config;
  config.model_type = with_dag ? "dagmoe" : "mixtral";
  config.base_model_type = "mixtral";
  config.vocab_size = 64, config.hidden_size = 16, config.intermediate_size = 12, config.num_hidden_layers = 2;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 4;
  config.max_position_embeddings = 128, config.initializer_range = 0.3, config.tie_word_embeddings = true;
  config.moe = MoeConfig{.num_experts = 4, .num_experts_per_tok = 2, .moe_intermediate_size = 12};
  if (with_dag) config.dag = DagConfig{.num_iterations = 2, .node_size = 6};
  return config;
}

/// Random weights of `dtype`, W_up not zero, so that nothing is trivially exact.
inline Decoder tiny_model(const ModelConfig& config, at::ScalarType dtype = at::kDouble, std::uint64_t seed = 1) {
  Decoder model(config);
  initialize_parameters(model, seed);
  at::Generator generator = at::detail::createCPUGenerator(seed + 100);
  model.compute_dtype = dtype;
  for (const auto& [name, tensor] : model.parameters()) {
    if (name.ends_with("up_proj.weight") && name.find(".dag.") != std::string::npos)
      tensor->normal_(0.0, 0.3, generator);
    if (name.ends_with("norm.weight")) tensor->normal_(1.0, 0.1, generator);
    *tensor = tensor->to(dtype);
  }
  return model;
}

/// A folder of its own under the system's temporary folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dagmoe-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(DAGMOE_SOURCE_DIR) / "tests" / "golden" / name;
}

/// A tensor of a golden file, in its own memory.
inline at::Tensor golden_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) throw std::runtime_error("no golden tensor " + name);
  at::Tensor tensor = at::empty(info->shape, scalar_type(info->dtype));
  std::memcpy(tensor.mutable_data_ptr(), file.bytes(*info).data(), tensor.nbytes());
  return tensor;
}

/// Packed sequences of given lengths from one list of ids.
inline ModelInput packed_input(const at::Tensor& ids_T, const std::vector<std::int64_t>& lengths) {
  ModelInput input{ids_T.to(at::kLong), {}, {0}};
  std::vector<at::Tensor> positions;
  for (const std::int64_t length : lengths) {
    positions.push_back(at::arange(length));
    input.segment_offsets.push_back(input.segment_offsets.back() + length);
  }
  input.position_ids_T = at::cat(positions);
  return input;
}

/// Where the imported SmolLM2 and the shared data lie; both may be absent.
inline std::filesystem::path smollm2_folder() {
  if (const char* folder = std::getenv("DAGMOE_SMOLLM2")) return folder;
  const char* cache = std::getenv("DAGMOE_CACHE");
  const char* home = std::getenv("HOME");
  const std::filesystem::path base = cache != nullptr
                                         ? std::filesystem::path(cache)
                                         : std::filesystem::path(home != nullptr ? home : "/") / ".cache/dagmoe";
  return base / "models" / "smollm2";
}

}  // namespace dagmoe::testing
