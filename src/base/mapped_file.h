#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

namespace dagmoe {

/// A whole file mapped read-only into memory; pages are read when touched. Unmapped with the last owner.
class MappedFile {
 public:
  /// Throws InputError when the file is missing, no regular file or unreadable. An empty file maps to an empty span.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  std::string_view text() const noexcept { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }
  const std::filesystem::path& path() const noexcept { return path_; }
  /// Gives the pages that were touched back to the system; touching them again reads them again, most often from its
  /// cache. For files that are gone through once.
  void release_pages() const noexcept;

 private:
  MappedFile(std::filesystem::path path, std::span<const std::byte> bytes);
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

}  // namespace dagmoe
