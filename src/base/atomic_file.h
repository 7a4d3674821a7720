#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

namespace dagmoe {

/// A file that appears whole or not at all: written beside its target under a temporary name, synced, then renamed.
/// Without commit() the destructor removes the temporary file. What a killed process left is removed by the next writer
/// of the same target. Throws InputError (disk full, folder unwritable).
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  int descriptor_ = -1;
};

void write_file_atomically(const std::filesystem::path& target, std::string_view text);

/// A folder that appears whole or not at all: `fill` gets a fresh temporary folder beside `target`, whose parents are
/// made; when it returns, every file is synced and the folder renamed. An existing folder at `target` is replaced only
/// when `replace` is set, by a swap in one step; otherwise InputError. When `fill` throws, nothing is left behind.
struct FolderOptions {
  bool replace = false;
};
void write_folder_atomically(const std::filesystem::path& target, FolderOptions options,
                             const std::function<void(const std::filesystem::path&)>& fill);

}  // namespace dagmoe
