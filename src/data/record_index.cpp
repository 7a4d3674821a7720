#include "data/record_index.h"

#include <cstring>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/content_hash.h"

namespace dagmoe {
namespace {

constexpr std::size_t kBlock = 256;
constexpr int kSkewBits = 20;
constexpr std::uint64_t kMaxSkew = (std::uint64_t{1} << kSkewBits) - 1;
constexpr std::uint64_t kMaxOffset = (std::uint64_t{1} << (64 - kSkewBits)) - 1;
constexpr std::size_t kChunk = std::size_t{1} << 16;
constexpr std::string_view kMagic = "dagmoe record index 1";

std::string checksum_of(const std::filesystem::path& file) {
  ContentHasher hasher;
  const auto stream = ByteStream::open(file);
  std::vector<char> chunk(std::size_t{1} << 20);
  while (const std::size_t count = stream->read(chunk.data(), chunk.size())) hasher.add({chunk.data(), count});
  return to_hex(hasher.digest());
}

/// Writes numbers and texts piece by piece, with the hash of all of them at the end.
class IndexWriter {
 public:
  explicit IndexWriter(const std::filesystem::path& path) : file_(path) {}
  void put(std::int64_t value) { put_bytes(&value, sizeof(value)); }
  void put(std::string_view text) {
    put(static_cast<std::int64_t>(text.size()));
    put_bytes(text.data(), text.size());
  }
  template <class Numbers>
  void put_all(const Numbers& numbers) {
    put(static_cast<std::int64_t>(numbers.size()));
    for (const auto number : numbers) put_bytes(&number, sizeof(number));
  }
  void commit() {
    flush();
    const ContentHash hash = hash_.digest();
    file_.write(std::string_view(reinterpret_cast<const char*>(&hash), sizeof(hash)));
    file_.commit();
  }

 private:
  void put_bytes(const void* bytes, std::size_t size) {
    buffer_.append(static_cast<const char*>(bytes), size);
    if (buffer_.size() >= kChunk) flush();
  }
  void flush() {
    hash_.add(buffer_);
    file_.write(std::string_view(buffer_));
    buffer_.clear();
  }
  AtomicFile file_;
  ContentHasher hash_;
  std::string buffer_;
};

/// Reads what IndexWriter wrote; every take() says whether it was there.
class IndexReader {
 public:
  explicit IndexReader(const std::filesystem::path& path)
      : window_(ByteStream::open(path)), left_(std::filesystem::file_size(path)) {}
  bool take(std::int64_t& value) { return take_bytes(&value, sizeof(value)); }
  bool take(std::string& text) {
    std::int64_t size = 0;
    if (!take(size) || size < 0 || static_cast<std::uint64_t>(size) > left_) return false;
    text.resize(static_cast<std::size_t>(size));
    return take_bytes(text.data(), text.size());
  }
  template <class Numbers>
  bool take_all(Numbers& numbers) {
    std::int64_t size = 0;
    if (!take(size) || size < 0 || static_cast<std::uint64_t>(size) > left_ / sizeof(numbers[0])) return false;
    for (std::int64_t i = 0; i < size; ++i) {
      if (!take_bytes(&numbers.emplace_back(), sizeof(numbers[0]))) return false;
    }
    return true;
  }
  /// The hash is right and nothing follows it.
  bool ends_well() {
    const ContentHash expected = hash_.digest();
    ContentHash found;
    return take_bytes(&found, sizeof(found)) && expected == found && left_ == 0;
  }

 private:
  bool take_bytes(void* target, std::size_t size) {
    while (window_.view().size() < size) {
      if (!window_.grow()) return false;
    }
    if (size > 0) std::memcpy(target, window_.view().data(), size);
    hash_.add({static_cast<const char*>(target), size});
    window_.advance(size);
    left_ -= size;
    return true;
  }
  ByteWindow window_;
  std::uint64_t left_;
  ContentHasher hash_;
};

}  // namespace

void RecordIndex::add(RecordPlace place) {
  if (place.offset > kMaxOffset) throw InputError("the file is larger than 16 TiB; split it");
  if (places_.size() % kBlock == 0) block_lines_.push_back(place.line);
  const auto skew = static_cast<std::uint64_t>(place.line - block_lines_.back());
  if (skew > kMaxSkew && wide_lines_.empty()) {
    for (std::int64_t i = 0; i < size(); ++i) wide_lines_.push_back((*this)[i].line);
  }
  if (skew > kMaxSkew || !wide_lines_.empty()) wide_lines_.push_back(place.line);
  places_.push_back(place.offset << kSkewBits | std::min(skew, kMaxSkew));
}

RecordPlace RecordIndex::operator[](std::int64_t index) const {
  const auto i = static_cast<std::size_t>(index);
  const std::uint64_t place = places_[i];
  const std::int64_t line =
      i < wide_lines_.size() ? wide_lines_[i] : block_lines_[i / kBlock] + static_cast<std::int64_t>(place & kMaxSkew);
  return {place >> kSkewBits, line};
}

std::filesystem::path IndexCache::path_of(const std::filesystem::path& file, const std::string& how) const {
  const std::string key = std::filesystem::absolute(file).lexically_normal().string() + "\n" + how;
  return folder_ / (to_hex(hash_of(key)) + ".index");
}

std::optional<FileScan> IndexCache::find(const std::filesystem::path& file, const std::string& how) const {
  const std::filesystem::path path = path_of(file, how);
  if (!std::filesystem::is_regular_file(path)) return std::nullopt;
  IndexReader reader(path);
  FileScan scan;
  std::string magic, checksum;
  std::int64_t num_bad = 0;
  if (!reader.take(magic) || magic != kMagic || !reader.take(checksum) || checksum != checksum_of(file))
    return std::nullopt;
  if (!reader.take(scan.num_records) || !reader.take(num_bad)) return std::nullopt;
  for (std::int64_t i = 0; i < num_bad; ++i) {
    BadRecordEntry& bad = scan.bad.emplace_back();
    if (!reader.take(bad.line) || !reader.take(bad.reason) || !reader.take(bad.text)) return std::nullopt;
  }
  RecordIndex& index = scan.index;
  const bool is_whole = reader.take_all(index.places_) && reader.take_all(index.block_lines_) &&
                        reader.take_all(index.wide_lines_) && reader.ends_well() &&
                        index.block_lines_.size() == (index.places_.size() + kBlock - 1) / kBlock;
  return is_whole ? std::optional(std::move(scan)) : std::nullopt;
}

void IndexCache::keep(const std::filesystem::path& file, const std::string& how, const FileScan& scan) const {
  try {
    std::filesystem::create_directories(folder_);
    IndexWriter writer(path_of(file, how));
    writer.put(kMagic);
    writer.put(checksum_of(file));
    writer.put(scan.num_records);
    writer.put(static_cast<std::int64_t>(scan.bad.size()));
    for (const BadRecordEntry& bad : scan.bad) writer.put(bad.line), writer.put(bad.reason), writer.put(bad.text);
    writer.put_all(scan.index.places_);
    writer.put_all(scan.index.block_lines_);
    writer.put_all(scan.index.wide_lines_);
    writer.commit();
  } catch (const InputError&) {
  } catch (const std::filesystem::filesystem_error&) {
  }
}

}  // namespace dagmoe
