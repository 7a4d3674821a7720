#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"

namespace dagmoe {

/// The weights of a model folder: model.safetensors, or the shards that model.safetensors.index.json names. Mapped, not
/// read.
class SafetensorsFolder {
 public:
  struct Place {
    const SafetensorsFile* file;
    const TensorInfo* info;
    std::span<const std::byte> bytes() const { return file->bytes(*info); }
  };
  /// Strict (contracts.md 1.2): a shard holds exactly the tensors that the index lists for it. Throws InputError with
  /// every tensor that is missing, not listed or in the wrong shard.
  static SafetensorsFolder open(const std::filesystem::path& folder);
  const std::map<std::string, Place, std::less<>>& places() const noexcept { return places_; }  ///< by name
  const Place* find(std::string_view name) const;
  void release_pages() const noexcept;  ///< MappedFile::release_pages of every file
  std::size_t num_files() const noexcept { return files_->size(); }

 private:
  std::shared_ptr<const std::vector<SafetensorsFile>> files_;
  std::map<std::string, Place, std::less<>> places_;
};

}  // namespace dagmoe
