#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"

namespace dagmoe {

/// Element types of safetensors files that we read and write.
enum class DType { kBool, kU8, kI8, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kF64, kI64, kU64 };
const char* dtype_name(DType dtype);   ///< "F32", as the file spells it
std::int64_t dtype_size(DType dtype);  ///< bytes an element
bool is_float(DType dtype);            ///< F16, BF16, F32 or F64

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes from the start of the data buffer
};

/// A file mapped read-only. Its header is checked in full before any tensor is handed out (contracts.md 1.1): length
/// (at most 100 MB), UTF-8, JSON, duplicate names, dtypes, overflow, offsets sorted without holes, last offset == file
/// end. Each broken header has its own one-line InputError with file and tensor.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);
  const std::vector<TensorInfo>& tensors() const noexcept { return tensors_; }  ///< by begin, then end, then name
  const TensorInfo* find(std::string_view name) const;
  /// The tensor's bytes inside the mapping; may be unaligned for its dtype, which the format allows.
  std::span<const std::byte> bytes(const TensorInfo& info) const;
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  const std::shared_ptr<const MappedFile>& mapping() const noexcept { return file_; }
  const std::filesystem::path& path() const noexcept { return file_->path(); }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::uint64_t data_start_ = 0;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;  // name -> place in tensors_
  std::map<std::string, std::string> metadata_;
};

/// A tensor to be written; `bytes` is called once, when its turn comes, so that no two need to be in memory at a time.
struct TensorSource {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::function<std::span<const std::byte>()> bytes;
};
/// Writes a file atomically, byte-identical to the reference writer's: dtype rank descending, then name; header padded
/// to 8.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace dagmoe
