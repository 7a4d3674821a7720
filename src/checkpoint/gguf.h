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
#include <utility>
#include <variant>
#include <vector>

#include "base/mapped_file.h"

namespace dagmoe {

/// Tensor encodings we can read, with their ids in the file.
enum class GgufType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30
};
const char* gguf_type_name(GgufType type);
/// Values and bytes of the smallest run that can be decoded alone: 32 and 18 for Q4_0, 1 and 4 for F32.
struct GgufBlock {
  std::int64_t num_values = 1, num_bytes = 0;
};
GgufBlock gguf_block(GgufType type);

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<std::int64_t> shape;     ///< [out, in]: the file's order reversed
  std::uint64_t offset = 0, size = 0;  ///< in bytes, from the start of the file
};

using GgufArray = std::variant<std::vector<std::int64_t>, std::vector<double>, std::vector<std::string>>;
using GgufValue = std::variant<std::int64_t, double, bool, std::string, GgufArray>;

/// A GGUF file (versions 2 and 3, little-endian), checked in full before use: every count and length against the bytes
/// that are left, before anything is allocated (contracts.md 2.1). Throws InputError with one clear line.
class GgufFile {
 public:
  static GgufFile open(const std::filesystem::path& path);
  std::int64_t version() const noexcept { return version_; }
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const noexcept { return metadata_; }
  const GgufValue* find(std::string_view key) const;
  const std::vector<GgufTensor>& tensors() const noexcept { return tensors_; }
  const GgufTensor* tensor(std::string_view name) const;
  std::span<const std::byte> bytes(const GgufTensor& tensor) const;
  const std::filesystem::path& path() const noexcept { return file_->path(); }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::int64_t version_ = 0;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;  // name -> place in tensors_
};

/// All values of a tensor in fp32, row-major; bit-equal to llama.cpp's dequantisation (two roundings,
/// contracts.md 2.2).
std::vector<float> dequantize(const GgufFile& file, const GgufTensor& tensor);
/// The same for one block-aligned run of bytes; what the tests check by hand.
void dequantize_blocks(GgufType type, std::span<const std::byte> bytes, std::span<float> values);

}  // namespace dagmoe
