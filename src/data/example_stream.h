#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/epoch_order.h"
#include "data/example.h"
#include "data/record_source.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// Where a stream of examples stands. The order within an epoch is a pure function of (seed, epoch), so this resumes
/// exactly.
struct StreamPosition {
  std::int64_t epoch = 0;
  std::int64_t next_index = 0;           ///< within the epoch's order, over all sources
  std::int64_t next_token = 0;           ///< of that record, when parts of its document have been taken
  std::vector<std::int64_t> taken = {};  ///< of the examples from there on, 0-based: those taken out of turn, ascending
  bool operator==(const StreamPosition&) const = default;
};

/// Counts for the run's report. `records`, `bad_records` and `duplicates` are of the files, the other counts of the
/// examples taken so far, an example of a second epoch again.
struct StreamCounters {
  std::int64_t records = 0, bad_records = 0, duplicates = 0;
  std::int64_t truncated = 0;                   ///< examples that lost their end
  std::int64_t prompts_cut = 0;                 ///< examples that lost the beginning of their prompt
  std::int64_t dropped = 0;                     ///< samples left out because they were too long
  std::int64_t split = 0;                       ///< documents that became several examples
  std::int64_t without_target = 0;              ///< examples left out because no supervised token was left
  std::vector<std::string> bad_record_reports;  ///< "file:line: reason", the first hundred
};

struct ExampleStreamOptions {
  std::int64_t max_seq_len = 512;
  std::int64_t max_bad_records = 0;  ///< one more throws InputError naming each
  std::int64_t limit = 0;            ///< use only the first n records of each source; 0: all
  bool shuffle = true;               ///< a true permutation per epoch over all sources; else the order of the files
  std::uint64_t seed = 0;
  Tokenization tokenization = Tokenization::kSeparate;
  LongSamples long_samples = LongSamples::kTruncate;
  bool ends_cut_with_eos = false;
  bool deduplicate = false;  ///< of records with equal texts, over all sources, only the first is used
  DataSplit split = DataSplit::kAll;
  double valid_fraction = 0.0;
  std::int64_t shuffle_buffer = 10000;          ///< records of a compressed source that are shuffled at a time
  std::int64_t num_threads = 0;                 ///< that tokenize; 0: one a core, at most 8
  std::filesystem::path bad_records_file = {};  ///< see BadRecords
  std::filesystem::path index_folder = {};      ///< see ScanOptions
  std::int64_t index_min_bytes = std::int64_t{64} << 20;
};

/// Examples of several sources, epoch after epoch. Construction scans the files once for the places of their records (8
/// bytes each stay in memory, and 4 for the order) and for broken ones; texts are read and tokenized by other threads,
/// a few hundred ahead, which wait when these are not taken. What comes in which order depends neither on their number
/// nor on their speed. An error of theirs reaches the caller with its file and line, at its turn.
class ExampleStream {
 public:
  /// `tokenizer` must outlive the stream. Throws InputError for a file that is missing or holds no good record, and
  /// when more records than max_bad_records are broken.
  ExampleStream(std::vector<SourceConfig> sources, const Tokenizer& tokenizer, ExampleStreamOptions options);
  ExampleStream(ExampleStream&&) noexcept;
  ~ExampleStream();
  std::int64_t size() const;  ///< records per epoch
  /// The next example; nullopt at the end of an epoch, after which the next epoch begins.
  /// Throws InputError for an epoch in which no example at all has a supervised token.
  std::optional<StreamExample> next();
  /// What next() will return, without taking it, or what will follow `ahead` places later; nullptr when the epoch ends
  /// before. It stays where it is until it is taken.
  const StreamExample* peek(std::int64_t ahead = 0);
  /// Takes what peek(ahead) shows, which must be an example; those before it keep their turn.
  StreamExample take(std::int64_t ahead);
  /// Of the example that next() returns.
  StreamPosition position() const;
  /// Throws InputError for a position outside the data, which is then not the data of the checkpoint.
  void seek(StreamPosition position);
  const StreamCounters& counters() const;

  std::int64_t num_sources() const;
  /// As the recipe names it.
  std::string source_name(std::size_t source) const;
  /// Good records of a source, and how many are drawn from it in an epoch.
  SourceShare source_share(std::size_t source) const;
  std::int64_t draws(std::size_t source) const;
  /// "file:line".
  std::string place_of(const StreamExample& example) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
