#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_folder.h"
#include "model/decoder.h"

namespace dagmoe {

at::ScalarType scalar_type(DType dtype);
DType dtype_of(at::ScalarType type);

/// A model folder: config.json and weights. Files are mapped; nothing is read before it is used.
class Checkpoint {
 public:
  /// Strict: one InputError lists every missing, unexpected and misshaped tensor; another one names what is damaged.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const noexcept { return folder_; }
  const ModelConfig& config() const noexcept { return config_; }
  ExpertLayout layout() const noexcept { return layout_; }
  const TensorInfo* find(std::string_view disk_name) const;
  std::vector<const TensorInfo*> tensors() const;  ///< of all files, by name
  /// A tensor over the mapped bytes that keeps the mapping alive; writing to it would crash. Copied only when
  /// unaligned.
  at::Tensor tensor(std::string_view disk_name) const;
  std::span<const std::byte> bytes(std::string_view disk_name) const;
  /// MappedFile::release_pages of every file: what was copied out of them need not stay in memory twice.
  void release_pages() const noexcept { weights_->release_pages(); }

 private:
  std::filesystem::path folder_;
  ModelConfig config_;
  ExpertLayout layout_ = ExpertLayout::kPerExpert;
  std::shared_ptr<const SafetensorsFolder> weights_;
};

/// Weights that are float whatever the compute dtype is: of norms and routers.
bool is_statistics_weight(const std::string& name);

struct LoadOptions {
  at::ScalarType compute_dtype = at::kFloat;
  /// Parameters that get their own fp32 memory and a gradient; by our names. Empty: none.
  std::function<bool(const std::string&)> is_trainable;
  /// Adds an aggregator that the checkpoint lacks; its weights come from `seed` (method.md 1.1).
  std::optional<DagConfig> add_dag;
  std::uint64_t seed = 0;
  /// Adds the router bias that a dagmoe lacks, as zeros, which change nothing.
  bool add_router_bias = false;
};

/// Frozen weights in the compute dtype stay in their file; others are converted once. Norms and routers are float
/// whatever the compute dtype is. Router biases never require grad. Throws ConfigError when the model has no place for
/// what is to be added.
Decoder load_decoder(const Checkpoint& checkpoint, const LoadOptions& options);

/// Writes config.json, model.safetensors and the source's tokenizer files into `folder`, which must exist
/// (write_folder_atomically makes it). The layout of the experts is the source's, and so is the text of config.json
/// when nothing in it changed. Weights that do not require grad are copied from the source's bytes, so that they stay
/// bit-identical; others take the dtype of their namesake in the source, else of its embedding, else (a DAG that was
/// added) float. Router biases, which change without a gradient, are always written as they are now, in float.
void save_model(const std::filesystem::path& folder, Decoder& model, const Checkpoint& source);

/// The tokenizer and generation files of a model folder that are there, copied as they are.
void copy_side_files(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace dagmoe
