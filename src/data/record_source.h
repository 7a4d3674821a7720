#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/bad_records.h"
#include "data/json_lines.h"
#include "data/record.h"
#include "data/record_index.h"

namespace dagmoe {

/// One entry of a recipe's data: a file, the files of a folder or those that a glob matches, and how their records are
/// read. Documents (RecordFormat::kText) longer than max_seq_len are read in parts, each an example.
struct SourceConfig {
  std::filesystem::path path;
  RecordFormat format = RecordFormat::kAlpaca;
  ChatFormat chat = {};
  ColumnMap columns = {};
  LossRule loss = {};
  std::optional<double> weight = {}, epochs = {};  ///< see SourceShare
};

/// The text of a record of a source. Throws InputError (the reason only) for a record that the format or the template
/// does not know.
std::vector<PromptPiece> sample_pieces(const SourceConfig& config, RawRecord& raw);

/// Content hashes that were there before. 16 bytes each, in a table that is at most three quarters full.
class SeenRecords {
 public:
  /// True when `hash` is new.
  bool add(ContentHash hash);
  std::int64_t size() const { return count_; }

 private:
  std::vector<ContentHash> table_;
  std::int64_t count_ = 0;
};

/// Which records of its files a stream takes.
enum class DataSplit { kAll, kTrain, kValid };

/// Whether a record belongs to the `fraction` of records that validate: by its content alone, so that it stays there
/// wherever it stands in which file.
bool is_validation_record(ContentHash hash, double fraction);

struct ScanOptions {
  std::int64_t limit = 0;  ///< use only the first n records; 0: all
  DataSplit split = DataSplit::kAll;
  double valid_fraction = 0.0;
  std::filesystem::path index_folder = {};  ///< where scans of large files are kept; empty: nowhere
  std::int64_t index_min_bytes = 64 << 20;  ///< of such a file
};

/// The records of one source, found by one pass over its files: their places, where the files are read at will. Of a
/// source with a compressed file, which can only be read from its beginning, it is one bit a record.
class RecordSource {
 public:
  explicit RecordSource(SourceConfig config);
  /// `seen`: leaves out what is in it, and adds to it; nullptr: keeps what is there twice. Throws InputError for a file
  /// that is missing.
  void scan(const ScanOptions& options, SeenRecords* seen, BadRecords& bad);

  const SourceConfig& config() const { return config_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }
  bool is_sequential() const { return is_sequential_; }
  std::int64_t size() const { return size_; }  ///< records to use
  std::int64_t num_records() const { return num_records_; }
  std::int64_t num_duplicates() const { return num_duplicates_; }

  struct Place {
    std::size_t file = 0;
    RecordPlace place;
    std::int64_t num_bytes = 0;  ///< about
  };
  Place place(std::int64_t index) const;  ///< not of a sequential source
  bool uses(std::size_t file, std::int64_t record) const {
    return static_cast<std::size_t>(record) < kept_[file].size() && kept_[file][static_cast<std::size_t>(record)];
  }

 private:
  FileScan scan_file(std::size_t file, const ScanOptions& options, SeenRecords* seen, BadRecords& bad);
  std::string how_read() const;

  SourceConfig config_;
  std::vector<std::filesystem::path> files_;
  bool is_sequential_ = false;
  std::vector<RecordIndex> indexes_;      ///< by file
  std::vector<std::int64_t> first_;       ///< of each file's records among all; one more at the end
  std::vector<std::uint64_t> num_bytes_;  ///< of each file
  std::vector<std::vector<bool>> kept_;   ///< by file, of a sequential source
  std::int64_t size_ = 0, num_records_ = 0, num_duplicates_ = 0;
};

/// A record's own text, taken from its file.
struct FetchedRecord {
  std::size_t file = 0;
  std::int64_t line = 0;
  std::string text;
};

/// Reads a sequential source pass after pass. With `shuffle` the records of a pass come in an order that is random
/// within chunks of `chunk_records`: one chunk is in memory at a time, and the order is the same for equal seeds.
class SequentialReader {
 public:
  SequentialReader(const RecordSource& source, bool shuffle, std::uint64_t seed, std::int64_t chunk_records);
  /// Forward it reads on, backward it begins again.
  FetchedRecord fetch(std::int64_t pass, std::int64_t index);

 private:
  void load(std::int64_t pass, std::int64_t chunk);
  FetchedRecord next_record();

  const RecordSource& source_;
  bool shuffle_;
  std::uint64_t seed_;
  std::int64_t chunk_records_;
  std::unique_ptr<RecordReader> reader_;
  std::size_t file_ = 0;         ///< of reader_
  std::int64_t record_ = 0;      ///< next one of it
  std::int64_t next_index_ = 0;  ///< of the source's records
  std::int64_t pass_ = -1, chunk_ = -1;
  std::vector<FetchedRecord> chunk_texts_;
  std::vector<std::int64_t> chunk_order_;
};

}  // namespace dagmoe
