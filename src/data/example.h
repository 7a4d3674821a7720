#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/record.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// One tokenized sample: loss_mask[i] is 1 where token i is a training target; `line` is its place in the file, for messages.
struct Example {
  std::vector<TokenId> tokens;
  std::vector<std::uint8_t> loss_mask;
  std::int64_t line = 0;
  bool truncated = false;
  std::int64_t num_targets() const;
};

/// Tokenizes the pieces of a sample one by one (policy `separate`, method.md 7.3), so that training and generation see the same
/// prompt ids: template pieces with control tokens parsed, data pieces without; BOS once at the start if the tokenizer adds
/// it; EOS (the tokenizer's) where a piece ends a turn and the template has no end-of-turn text of its own.
/// A sample longer than `max_seq_len` loses its end, EOS included; `truncated` says so.
Example make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, std::int64_t max_seq_len);

/// One file of samples.
struct SourceConfig {
  std::filesystem::path path;
  RecordFormat format = RecordFormat::kAlpaca;
  PromptTemplate prompt_template = PromptTemplate::kAlpaca;
  std::string default_system;  ///< of the chat template, chatml only
};

/// Where a stream of examples stands. The order within an epoch is a pure function of (seed, epoch), so this resumes exactly.
struct StreamPosition {
  std::int64_t epoch = 0;
  std::int64_t next_index = 0;  ///< within the epoch's order, over all sources
};

/// Counts for the run's report.
struct StreamCounters {
  std::int64_t records = 0, bad_records = 0, truncated = 0, without_target = 0;
  std::vector<std::string> bad_record_reports;  ///< "file:line: reason", the first hundred
};

struct ExampleStreamOptions {
  std::int64_t max_seq_len = 512;
  std::int64_t max_bad_records = 0;  ///< one more throws InputError naming each
  std::int64_t limit = 0;            ///< use only the first n records of each source; 0: all
  bool shuffle = true;               ///< a true permutation per epoch over all sources
  std::uint64_t seed = 0;
};

/// Examples of several files, epoch after epoch. Construction scans the files once for the offsets of their records (8 bytes
/// each stay in memory) and for broken ones; texts are read and tokenized when asked for.
class ExampleStream {
 public:
  ExampleStream(std::vector<SourceConfig> sources, const Tokenizer& tokenizer, ExampleStreamOptions options);
  ~ExampleStream();
  std::int64_t size() const;  ///< good records per epoch
  /// The next example; nullopt at the end of an epoch, after which the next epoch begins.
  std::optional<Example> next();
  StreamPosition position() const;
  void seek(StreamPosition position);
  const StreamCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
