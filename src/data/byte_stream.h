#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace dagmoe {

/// The bytes of a file from a place on; those of a .gz or .zst file unpacked as they are asked for.
class ByteStream {
 public:
  /// By the end of the name. Throws InputError when the file is missing or no regular file.
  static std::unique_ptr<ByteStream> open(const std::filesystem::path& path);
  virtual ~ByteStream() = default;
  /// Up to `size` bytes, 0 only at the end. Throws InputError for what cannot be read or unpacked.
  virtual std::size_t read(char* target, std::size_t size) = 0;
  /// `offset` counts unpacked bytes. A plain file jumps; a compressed one is unpacked up to there, from its beginning
  /// where the place lies behind.
  virtual void seek(std::uint64_t offset) = 0;
};

/// Whether a file is read in one direction only, by the end of its name: .gz, .zst.
bool is_compressed(const std::filesystem::path& path);
/// Without .gz or .zst.
std::filesystem::path uncompressed_name(const std::filesystem::path& path);

/// A stretch of a stream in memory: grows while the caller needs more of it at once, and lets go of what lies behind.
class ByteWindow {
 public:
  /// Behind view() so many bytes more can be read, whatever they are.
  static constexpr std::size_t kPadding = 64;
  explicit ByteWindow(std::unique_ptr<ByteStream> stream);
  /// What is in memory, from the place on. Valid until the next grow() or seek().
  std::string_view view() const { return {buffer_.get() + begin_, end_ - begin_}; }
  /// Makes view() longer; false at the end of the stream.
  bool grow();
  void advance(std::size_t count) { begin_ += count; }
  std::uint64_t offset() const { return end_offset_ - (end_ - begin_); }
  void seek(std::uint64_t offset);

 private:
  void make_room(std::size_t count);

  std::unique_ptr<ByteStream> stream_;
  std::unique_ptr<char[]> buffer_;
  std::size_t capacity_ = 0, begin_ = 0, end_ = 0, next_read_ = 0;
  std::uint64_t end_offset_ = 0;  ///< of end_ in the stream
};

}  // namespace dagmoe
