#include "data/duplicate_counter.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace dagmoe {
namespace {

constexpr std::size_t kInMemory = 1'000'000, kChunk = 4096;
constexpr std::uint64_t kParts = 16;

std::int64_t count_equal(std::vector<ContentHash>& hashes) {
  std::ranges::sort(hashes, {}, [](const ContentHash& hash) { return std::pair(hash.high, hash.low); });
  return std::distance(std::unique(hashes.begin(), hashes.end()), hashes.end());
}

}  // namespace

void DuplicateCounter::spill() {
  if (!file_) file_.reset(std::tmpfile());
  if (!file_ || std::fwrite(hashes_.data(), sizeof(ContentHash), hashes_.size(), file_.get()) != hashes_.size())
    throw InputError("the temporary folder (TMPDIR or /tmp) cannot be written; is it full?");
  hashes_.clear();
}

void DuplicateCounter::add(ContentHash hash) {
  hashes_.push_back(hash);
  if (hashes_.size() == kInMemory) spill();
}

std::int64_t DuplicateCounter::count() {
  if (!file_) return count_equal(hashes_);
  spill();
  std::int64_t total = 0;
  std::vector<ContentHash> chunk(kChunk);
  for (std::uint64_t part = 0; part < kParts; ++part) {
    std::rewind(file_.get());
    hashes_.clear();
    while (const std::size_t count = std::fread(chunk.data(), sizeof(ContentHash), kChunk, file_.get())) {
      for (std::size_t i = 0; i < count; ++i) {
        if (chunk[i].high % kParts == part) hashes_.push_back(chunk[i]);
      }
    }
    total += count_equal(hashes_);
  }
  return total;
}

}  // namespace dagmoe
