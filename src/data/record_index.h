#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace dagmoe {

/// Where a record lies in its file.
struct RecordPlace {
  std::uint64_t offset = 0;
  std::int64_t line = 0;
};

/// The places of the good records of one file, 8 bytes each: 44 bits of offset, 20 of how many lines lie between the
/// record and the first one of its block of 256.
class RecordIndex {
 public:
  /// In the order of the file. Throws InputError for an offset of 16 TiB and more.
  void add(RecordPlace place);
  std::int64_t size() const { return static_cast<std::int64_t>(places_.size()); }
  RecordPlace operator[](std::int64_t index) const;
  bool operator==(const RecordIndex&) const = default;

 private:
  friend class IndexCache;
  std::deque<std::uint64_t> places_;  ///< a vector would hold them twice while it grows
  std::vector<std::int64_t> block_lines_;
  std::vector<std::int64_t> wide_lines_;  ///< of every record, once 20 bits were not enough for one
};

/// One bad record of a file, as reports show it.
struct BadRecordEntry {
  std::int64_t line = 0;
  std::string reason, text;
  bool operator==(const BadRecordEntry&) const = default;
};

/// All that a scan of one file finds.
struct FileScan {
  RecordIndex index;
  std::int64_t num_records = 0;  ///< good and bad
  std::vector<BadRecordEntry> bad;
};

/// Keeps scans of large files in a folder. A kept scan counts only while the file has the same bytes (their XXH3-128)
/// and was read in the same way (`how`: format, template and the like).
class IndexCache {
 public:
  explicit IndexCache(std::filesystem::path folder) : folder_(std::move(folder)) {}
  std::optional<FileScan> find(const std::filesystem::path& file, const std::string& how) const;
  /// A cache that cannot be written is no reason to stop: the next run scans again.
  void keep(const std::filesystem::path& file, const std::string& how, const FileScan& scan) const;

 private:
  std::filesystem::path path_of(const std::filesystem::path& file, const std::string& how) const;
  std::filesystem::path folder_;
};

}  // namespace dagmoe
