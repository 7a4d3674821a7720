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

/// One tokenized sample: loss_mask[i] is 1 where token i is a training target; `line` is its place in the file, for
/// messages.
struct Example {
  std::vector<TokenId> tokens;
  std::vector<std::uint8_t> loss_mask;
  std::int64_t line = 0;
  bool truncated = false;
  std::int64_t num_targets()
      const;  ///< supervised tokens, without a first one: nothing comes before it to predict it from
};

/// Tokenizes the pieces of a sample one by one (policy `separate`, method.md 7.3), so that training and generation see
/// the same prompt ids: template pieces with control tokens parsed, data pieces without; BOS once at the start if the
/// tokenizer adds it; EOS (the tokenizer's) where a piece ends a turn and the template has no end-of-turn text of its
/// own. A sample longer than `max_seq_len` loses its end, EOS included; `truncated` says so. Throws InputError (the
/// reason only) when a piece ends its turn and the tokenizer has no EOS token.
Example make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, std::int64_t max_seq_len);

/// The part of a long document that is learnt next: at most `max_seq_len` tokens, of which the first is the last one of
/// the part before (nothing predicts a part's first token, and so every token of the document is a target once; the
/// repeated one is not supervised again). `next_token`: how many tokens the parts before had learnt, 0 for the first
/// part; it is moved on, to `document.tokens.size()` with the last part. `max_seq_len` is at least 2. Throws InputError
/// (the reason only) for a token outside the document.
Example document_part(const Example& document, std::int64_t& next_token, std::int64_t max_seq_len);

/// One file of samples. Documents (RecordFormat::kText) longer than max_seq_len are read in parts, each an example;
/// samples of other formats lose their end.
struct SourceConfig {
  std::filesystem::path path;
  RecordFormat format = RecordFormat::kAlpaca;
  ChatFormat chat = {};
};

/// Where a stream of examples stands. The order within an epoch is a pure function of (seed, epoch), so this resumes
/// exactly.
struct StreamPosition {
  std::int64_t epoch = 0;
  std::int64_t next_index = 0;  ///< within the epoch's order, over all sources
  std::int64_t next_token = 0;  ///< of that record, when parts of its document have been taken
};

/// The order of an epoch: a permutation of 0 .. size - 1 that depends on its arguments alone, on every machine and with
/// every standard library.
std::vector<std::int64_t> epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch);

/// Counts for the run's report. `records` and `bad_records` are of the files, the other counts of the examples asked
/// for so far, an example of a second epoch again.
struct StreamCounters {
  std::int64_t records = 0, bad_records = 0;
  std::int64_t truncated = 0;                   ///< examples that lost their end
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
};

/// Examples of several files, epoch after epoch. Construction scans the files once for the places of their records (16
/// bytes each stay in memory, and 8 for the order) and for broken ones; texts are read and tokenized when asked for,
/// the next few dozen ahead of time by a second thread.
class ExampleStream {
 public:
  /// `tokenizer` must outlive the stream. Throws InputError for a file that is missing or holds no good record, and
  /// when more records than max_bad_records are broken.
  ExampleStream(std::vector<SourceConfig> sources, const Tokenizer& tokenizer, ExampleStreamOptions options);
  ExampleStream(ExampleStream&&) noexcept;
  ~ExampleStream();
  std::int64_t size() const;  ///< good records per epoch
  /// The next example; nullopt at the end of an epoch, after which the next epoch begins.
  /// Throws InputError for an epoch in which no example at all has a supervised token.
  std::optional<Example> next();
  /// What next() will return, without taking it; nullptr at the end of an epoch.
  const Example* peek();
  /// Of the example that next() returns.
  StreamPosition position() const;
  /// Throws InputError for a position outside the data, which is then not the data of the checkpoint.
  void seek(StreamPosition position);
  const StreamCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
