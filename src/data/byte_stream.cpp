#include "data/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::size_t kFirstRead = 4096, kLongestRead = std::size_t{1} << 20;
constexpr std::size_t kPackedChunk = std::size_t{1} << 18;

class PlainStream final : public ByteStream {
 public:
  explicit PlainStream(const std::filesystem::path& path) : path_(path) {
    // Opening a pipe without O_NONBLOCK would wait for a writer.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) fail(errno == ENOENT ? "; check the path" : "");
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail();
    const char* found = S_ISDIR(status.st_mode) ? "a folder" : S_ISREG(status.st_mode) ? nullptr : "no regular file";
    if (found == nullptr) return;
    ::close(descriptor_);
    throw InputError(str(path.string(), ": found ", found, ", expected a file"));
  }
  ~PlainStream() override { ::close(descriptor_); }
  PlainStream(const PlainStream&) = delete;
  PlainStream& operator=(const PlainStream&) = delete;

  std::size_t read(char* target, std::size_t size) override {
    ssize_t count = 0;
    do {
      count = ::pread(descriptor_, target, size, static_cast<off_t>(offset_));
    } while (count < 0 && errno == EINTR);
    if (count < 0) fail();
    offset_ += static_cast<std::uint64_t>(count);
    return static_cast<std::size_t>(count);
  }
  void seek(std::uint64_t offset) override { offset_ = offset; }

 private:
  [[noreturn]] void fail(const char* hint = "") const {
    throw InputError(str(path_.string(), ": cannot read: ", std::generic_category().message(errno), hint));
  }
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t offset_ = 0;
};

/// What the two formats have in common: chunks of packed bytes, and places of unpacked ones.
class PackedStream : public ByteStream {
 public:
  explicit PackedStream(const std::filesystem::path& path) : path_(path), packed_(path), chunk_(kPackedChunk) {}

  std::size_t read(char* target, std::size_t size) override {
    std::size_t count = 0;
    while (count == 0 && size > 0 && !at_end_) count = unpack(target, size);
    offset_ += count;
    return count;
  }
  void seek(std::uint64_t offset) override {
    if (offset < offset_) {
      packed_.seek(0);
      num_packed_ = used_ = 0;
      offset_ = 0;
      at_end_ = false;
      restart();
    }
    std::vector<char> skipped(kLongestRead);
    while (offset_ < offset) {
      const auto wanted = std::min<std::uint64_t>(offset - offset_, skipped.size());
      if (read(skipped.data(), static_cast<std::size_t>(wanted)) == 0) return;
    }
  }

 protected:
  /// Unpacks what is there of the chunk; 0 bytes are no end, at_end_ is.
  virtual std::size_t unpack(char* target, std::size_t size) = 0;
  virtual void restart() = 0;
  /// False at the end of the file.
  bool has_packed() {
    if (used_ < num_packed_) return true;
    num_packed_ = packed_.read(chunk_.data(), chunk_.size());
    used_ = 0;
    return num_packed_ > 0;
  }
  [[noreturn]] void damaged(const std::string& how) const {
    throw InputError(str(path_.string(), ": ", how, " behind ", offset_, " unpacked bytes; is the file complete?"));
  }

  std::filesystem::path path_;
  PlainStream packed_;
  std::vector<char> chunk_;
  std::size_t num_packed_ = 0, used_ = 0;
  std::uint64_t offset_ = 0;  // unpacked
  bool at_end_ = false;
};

class GzipStream final : public PackedStream {
 public:
  explicit GzipStream(const std::filesystem::path& path) : PackedStream(path) {
    constexpr int kGzipOnly = 15 + 16;
    if (::inflateInit2(&state_, kGzipOnly) != Z_OK) throw InternalError("zlib does not start");
  }
  ~GzipStream() override { ::inflateEnd(&state_); }

 private:
  std::size_t unpack(char* target, std::size_t size) override {
    if (!has_packed()) {
      if (inside_) damaged("the gzip data ends early");
      at_end_ = true;
      return 0;
    }
    inside_ = true;
    state_.next_in = reinterpret_cast<Bytef*>(chunk_.data() + used_);
    state_.avail_in = static_cast<uInt>(num_packed_ - used_);
    state_.next_out = reinterpret_cast<Bytef*>(target);
    state_.avail_out = static_cast<uInt>(size);
    const int result = ::inflate(&state_, Z_NO_FLUSH);
    used_ = num_packed_ - state_.avail_in;
    if (result == Z_STREAM_END) {  // another member may follow
      ::inflateReset(&state_);
      inside_ = false;
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      damaged("damaged gzip data");
    }
    return size - state_.avail_out;
  }
  void restart() override {
    ::inflateReset(&state_);
    inside_ = false;
  }
  z_stream state_{};
  bool inside_ = false;  // of a member
};

class ZstdStream final : public PackedStream {
 public:
  explicit ZstdStream(const std::filesystem::path& path) : PackedStream(path), state_(::ZSTD_createDStream()) {
    if (state_ == nullptr) throw InternalError("zstd does not start");
  }
  ~ZstdStream() override { ::ZSTD_freeDStream(state_); }

 private:
  std::size_t unpack(char* target, std::size_t size) override {
    ZSTD_outBuffer out{target, size, 0};
    // Even without packed bytes something may be left to flush.
    const bool has_more = has_packed();
    ZSTD_inBuffer in{chunk_.data(), num_packed_, used_};
    const std::size_t result = ::ZSTD_decompressStream(state_, &out, &in);
    used_ = in.pos;
    if (::ZSTD_isError(result)) damaged("damaged zstd data");
    if (!has_more && out.pos == 0) {
      if (wanted_ != 0) damaged("the zstd data ends early");
      at_end_ = true;
    }
    if (has_more || out.pos > 0) wanted_ = result;
    return out.pos;
  }
  void restart() override {
    ::ZSTD_DCtx_reset(state_, ZSTD_reset_session_only);
    wanted_ = 0;
  }
  ZSTD_DStream* state_;
  std::size_t wanted_ = 0;  // 0 behind a whole frame
};

}  // namespace

bool is_compressed(const std::filesystem::path& path) {
  return path.extension() == ".gz" || path.extension() == ".zst";
}

std::filesystem::path uncompressed_name(const std::filesystem::path& path) {
  return is_compressed(path) ? std::filesystem::path(path).replace_extension() : path;
}

std::unique_ptr<ByteStream> ByteStream::open(const std::filesystem::path& path) {
  if (path.extension() == ".gz") return std::make_unique<GzipStream>(path);
  if (path.extension() == ".zst") return std::make_unique<ZstdStream>(path);
  return std::make_unique<PlainStream>(path);
}

ByteWindow::ByteWindow(std::unique_ptr<ByteStream> stream) : stream_(std::move(stream)), next_read_(kFirstRead) {
  make_room(kFirstRead);
}

// Moves what is left to the front, into another buffer where this one is too small, or far too large.
void ByteWindow::make_room(std::size_t count) {
  const std::size_t left = end_ - begin_, needed = left + count;
  const bool is_wasteful = capacity_ > 16 * kLongestRead && needed < capacity_ / 8;
  if (needed > capacity_ || is_wasteful) {
    const std::size_t capacity = needed + needed / 2;
    auto buffer = std::make_unique_for_overwrite<char[]>(capacity + kPadding);
    std::memset(buffer.get() + capacity, 0, kPadding);
    if (left > 0) std::memcpy(buffer.get(), buffer_.get() + begin_, left);
    buffer_ = std::move(buffer);
    capacity_ = capacity;
  } else if (begin_ > 0) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, left);
  }
  begin_ = 0;
  end_ = left;
}

bool ByteWindow::grow() {
  const std::size_t wanted = std::max(next_read_, end_ - begin_);
  if (begin_ > 0 || end_ + wanted > capacity_) make_room(wanted);
  const std::size_t count = stream_->read(buffer_.get() + end_, wanted);
  // The padding reads as zeros, so that no run depends on what was in memory before.
  std::memset(buffer_.get() + end_ + count, 0, kPadding);
  end_ += count;
  end_offset_ += count;
  next_read_ = std::min(2 * next_read_, kLongestRead);
  return count > 0;
}

void ByteWindow::seek(std::uint64_t offset) {
  const std::uint64_t first = end_offset_ - end_;
  if (offset >= first && offset <= end_offset_) {
    begin_ = static_cast<std::size_t>(offset - first);
    return;
  }
  stream_->seek(offset);
  begin_ = end_ = 0;
  end_offset_ = offset;
  next_read_ = kFirstRead;
}

}  // namespace dagmoe
