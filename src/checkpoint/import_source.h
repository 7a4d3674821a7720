#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/import.h"
#include "model/config.h"

namespace dagmoe {

/// What a source of either kind offers, checked in full: every tensor it has is used, every one the model needs is
/// there.
struct ImportSource {
  std::string kind;  ///< ImportReport::source_kind
  ModelConfig config;
  /// Disk names and shapes; `bytes` decodes or maps one in the dtype asked for and may reuse the memory of the one
  /// before.
  std::vector<TensorSource> tensors;
  /// Writes tokenizer files, and a generation_config.json if the source has one, into a folder.
  std::function<void(const std::filesystem::path& folder)> write_side_files;
};

ImportSource open_gguf_source(const std::filesystem::path& path, DType dtype);
ImportSource open_folder_source(const std::filesystem::path& folder, DType dtype);

}  // namespace dagmoe
