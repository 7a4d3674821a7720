#include "data/example.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <future>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

__extension__ using Uint128 = unsigned __int128;

// How many examples one round of the background thread makes.
constexpr std::size_t kBlockExamples = 64;
constexpr std::size_t kMaxKeptReports = 100;
constexpr std::size_t kMaxShownReports = 10;

// SplitMix64 (Steele, Lea, Flood 2014): a counter and a mixer, so a handful of seeds are as good as one long run.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound), without modulo bias (arXiv:1805.10941).
  std::uint64_t below(std::uint64_t bound) {
    Uint128 product = static_cast<Uint128>(next()) * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
      const std::uint64_t threshold = (0 - bound) % bound;
      while (static_cast<std::uint64_t>(product) < threshold) product = static_cast<Uint128>(next()) * bound;
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

 private:
  std::uint64_t state_;
};

// Where a record lies in its file.
struct RecordPlace {
  std::uint64_t offset = 0;
  std::int64_t line = 0;
};

struct Source {
  SourceConfig config;
  std::unique_ptr<RecordReader> reader;
  std::vector<RecordPlace> places;  // of the good records
};

// One answer of next(), made ahead of time. `after` is the position once it is taken.
struct Prepared {
  std::optional<Example> example;  // nullopt: the end of the epoch, or `error`
  std::exception_ptr error;
  StreamPosition after;
};

std::string place_text(const Source& source, std::int64_t line) {
  return str(source.config.path.string(), ":", line, ": ");
}

std::vector<PromptPiece> pieces_of(const Source& source, const RawRecord& raw) {
  return sample_text(read_record(source.config.format, raw), source.config.chat);
}

/// Control tokens are those that decoding leaves out.
bool is_control(const Tokenizer& tokenizer, TokenId id) {
  return tokenizer.decode({&id, 1}).empty() && !tokenizer.decode({&id, 1}, /*keep_special=*/true).empty();
}

}  // namespace

std::int64_t Example::num_targets() const {
  if (loss_mask.empty()) return 0;
  return std::count_if(loss_mask.begin() + 1, loss_mask.end(), [](std::uint8_t mask) { return mask != 0; });
}

Example make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, std::int64_t max_seq_len) {
  const auto limit = static_cast<std::size_t>(max_seq_len);
  Example example;
  const auto append = [&](std::span<const TokenId> ids, bool is_supervised) {
    example.tokens.insert(example.tokens.end(), ids.begin(), ids.end());
    example.loss_mask.resize(example.tokens.size(), is_supervised ? 1 : 0);
  };
  bool has_text = false, after_control = false;
  for (const PromptPiece& piece : pieces) {
    if (example.tokens.size() > limit) break;  // the rest is cut anyway
    const std::vector<TokenId> ids = tokenizer.encode(piece.text, {.add_bos = false,
                                                                   .add_eos = false,
                                                                   .parse_special = piece.is_template,
                                                                   .continues = has_text && !after_control,
                                                                   .after_control = after_control});
    if (!ids.empty()) after_control = piece.is_template && is_control(tokenizer, ids.back());
    // A template may write BOS itself; it is there once all the same.
    const std::optional<TokenId> bos = tokenizer.bos_id();
    if (!has_text && !ids.empty() && tokenizer.adds_bos() && bos && ids.front() != *bos) append({&*bos, 1}, false);
    has_text = has_text || !ids.empty();
    append(ids, piece.is_supervised);
    if (!piece.ends_turn) continue;
    const std::optional<TokenId> eos = tokenizer.eos_id();
    if (!eos)
      throw InputError("the tokenizer has no EOS token, which ends an answer; set eos_token in tokenizer_config.json");
    append({&*eos, 1}, piece.is_supervised);
    after_control = true;
  }
  example.truncated = example.tokens.size() > limit;
  if (example.truncated) {
    example.tokens.resize(limit);
    example.loss_mask.resize(limit);
  }
  return example;
}

Example document_part(const Example& document, std::int64_t& next_token, std::int64_t max_seq_len) {
  if (max_seq_len < 2) throw InternalError("document_part: a part needs a token and one to predict it from");
  const auto size = static_cast<std::int64_t>(document.tokens.size());
  if (next_token < 0 || (next_token > 0 && next_token >= size)) {
    throw InputError(str("token ", next_token, " is not in the text, which has ", size,
                         "; did the files change since the checkpoint?"));
  }
  const std::int64_t first = std::max<std::int64_t>(next_token - 1, 0), end = std::min(first + max_seq_len, size);
  Example part;
  part.tokens.assign(document.tokens.begin() + first, document.tokens.begin() + end);
  part.loss_mask.assign(document.loss_mask.begin() + first, document.loss_mask.begin() + end);
  part.line = document.line;
  if (next_token > 0) part.loss_mask.front() = 0;
  next_token = end;
  return part;
}

std::vector<std::int64_t> epoch_order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  // One draw mixes the seed before the epoch comes in: (seed, epoch + 1) and (seed + 1, epoch) have nothing in common.
  SplitMix64 generator(SplitMix64(seed).next() + static_cast<std::uint64_t>(epoch));
  std::vector<std::int64_t> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[generator.below(i)]);  // Fisher-Yates
  return order;
}

// Two halves. prepare() makes examples and is all that the background thread runs: it alone touches readers and order,
// and one call ends before the next begins. advance() hands them out and keeps counters and positions.
struct ExampleStream::Impl {
  std::vector<Source> sources;
  const Tokenizer& tokenizer;
  ExampleStreamOptions options;
  StreamCounters counters;
  std::int64_t size = 0;

  std::int64_t order_epoch = -1;
  std::vector<std::int64_t> order;  // of order_epoch; empty without shuffling

  StreamPosition position;              // of what next() returns
  std::optional<Prepared> ahead;        // taken from the block by peek()
  std::int64_t without_target_run = 0;  // examples left out since the last one handed out
  std::deque<Prepared> block;
  std::future<std::deque<Prepared>> next_block;  // last: its destructor waits for the thread

  Impl(const Tokenizer& with, ExampleStreamOptions opts) : tokenizer(with), options(opts) {}
  void scan(Source& source);
  void report_bad(const Source& source, std::int64_t line, const std::string& reason);
  void check_budget() const;
  Example read(std::int64_t index);
  void append_document(std::deque<Prepared>& made, const Example& document, StreamPosition& from) const;
  std::deque<Prepared> prepare(StreamPosition from);
  Prepared take(StreamPosition from);
  Prepared advance();
};

void ExampleStream::Impl::report_bad(const Source& source, std::int64_t line, const std::string& reason) {
  ++counters.bad_records;
  if (counters.bad_record_reports.size() < kMaxKeptReports) {
    counters.bad_record_reports.push_back(place_text(source, line) + reason);
  }
}

// Finds the good records of one file. Everything about a record is checked here but its tokens.
void ExampleStream::Impl::scan(Source& source) {
  source.reader = RecordReader::open(source.config.path);
  RawRecord raw;
  std::unique_ptr<BadRecord> bad;
  RecordPlace place{source.reader->offset(), source.reader->line()};
  std::int64_t last_line = 0;
  for (std::int64_t num_read = 0; options.limit == 0 || num_read < options.limit; ++num_read) {
    if (!source.reader->next(raw, bad)) break;
    ++counters.records;
    // In an array on one line the line says nothing.
    const std::int64_t line = bad ? bad->line : raw.line;
    const std::string which = line == last_line ? str("record ", num_read + 1, ": ") : "";
    last_line = line;
    if (bad) {
      report_bad(source, line, which + bad->reason);
    } else {
      try {
        pieces_of(source, raw);
        source.places.push_back(place);
      } catch (const InputError& error) {
        report_bad(source, line, which + error.what());
      }
    }
    place = {source.reader->offset(), source.reader->line()};
  }
  size += static_cast<std::int64_t>(source.places.size());
}

void ExampleStream::Impl::check_budget() const {
  if (counters.bad_records <= options.max_bad_records) return;
  const std::vector<std::string>& reports = counters.bad_record_reports;
  const std::size_t num_shown = std::min(reports.size(), kMaxShownReports);
  std::string message;
  for (std::size_t i = 0; i < num_shown; ++i) message += reports[i] + "\n";
  const std::int64_t num_more = counters.bad_records - static_cast<std::int64_t>(num_shown);
  if (num_more > 0) message += str("and ", num_more, " more\n");
  throw InputError(str(message, counters.bad_records, " bad ", counters.bad_records == 1 ? "record" : "records", " of ",
                       counters.records, ", max_bad_records is ", options.max_bad_records,
                       "; repair the data or raise it"));
}

// `index` counts the good records of all sources. A document comes whole, however long it is.
Example ExampleStream::Impl::read(std::int64_t index) {
  auto source = sources.begin();
  while (index >= static_cast<std::int64_t>(source->places.size())) {
    index -= static_cast<std::int64_t>(source->places.size());
    ++source;
  }
  const RecordPlace place = source->places[static_cast<std::size_t>(index)];
  RawRecord raw;
  std::unique_ptr<BadRecord> bad;
  source->reader->seek(place.offset, place.line);
  const bool found = source->reader->next(raw, bad);
  try {
    if (!found || bad) throw InputError("the file has changed since it was opened; start again");
    const std::int64_t max_seq_len =
        source->config.format == RecordFormat::kText ? std::numeric_limits<std::int64_t>::max() : options.max_seq_len;
    Example example = make_example(tokenizer, pieces_of(*source, raw), max_seq_len);
    example.line = raw.line;
    return example;
  } catch (const InputError& error) {
    throw InputError(place_text(*source, bad ? bad->line : raw.line) + error.what());
  }
}

// All that is left of a document becomes examples at once, so that it is tokenized once.
void ExampleStream::Impl::append_document(std::deque<Prepared>& made, const Example& document,
                                          StreamPosition& from) const {
  const std::int64_t index = from.next_index;
  while (from.next_index == index) {
    Example part = document_part(document, from.next_token, options.max_seq_len);
    if (from.next_token == static_cast<std::int64_t>(document.tokens.size())) from = {from.epoch, index + 1, 0};
    made.push_back({std::move(part), nullptr, from});
  }
}

// What next() is to return from a position on, until a block is full, the epoch ends or an example fails.
std::deque<Prepared> ExampleStream::Impl::prepare(StreamPosition from) {
  std::deque<Prepared> made;
  if (options.shuffle && from.epoch != order_epoch) {
    order = epoch_order(size, options.seed, from.epoch);
    order_epoch = from.epoch;
  }
  while (made.size() < kBlockExamples) {
    if (from.next_index == size) {
      made.push_back({std::nullopt, nullptr, {from.epoch + 1, 0, 0}});
      break;
    }
    try {
      const std::int64_t index = options.shuffle ? order[static_cast<std::size_t>(from.next_index)] : from.next_index;
      Example example = read(index);
      const bool is_longer = static_cast<std::int64_t>(example.tokens.size()) > options.max_seq_len;
      if (is_longer || from.next_token > 0) {
        append_document(made, example, from);
      } else {
        from = {from.epoch, from.next_index + 1, 0};
        made.push_back({std::move(example), nullptr, from});
      }
    } catch (...) {
      made.push_back({std::nullopt, std::current_exception(), from});
      break;
    }
  }
  return made;
}

// The next prepared answer. While one block is used up, a thread makes the following one.
Prepared ExampleStream::Impl::take(StreamPosition from) {
  if (block.empty()) {
    block = next_block.valid() ? next_block.get() : prepare(from);
    const StreamPosition after = block.back().after;
    if (!block.back().error) next_block = std::async(std::launch::async, [this, after] { return prepare(after); });
  }
  Prepared first = std::move(block.front());
  block.pop_front();
  return first;
}

Prepared ExampleStream::Impl::advance() {
  StreamPosition from = position;
  while (true) {
    Prepared prepared = take(from);
    if (prepared.error) std::rethrow_exception(prepared.error);
    if (!prepared.example) {
      if (without_target_run >= size) {
        throw InputError(str("none of the ", size, " examples of ", sources[0].config.path.string(),
                             sources.size() > 1 ? " and the other files" : "",
                             " has a supervised token within max_seq_len (", options.max_seq_len, "); raise it"));
      }
      without_target_run = 0;
      return prepared;
    }
    if (prepared.example->truncated) ++counters.truncated;
    if (from.next_token == 0 && prepared.after.next_token > 0) ++counters.split;
    if (prepared.example->num_targets() > 0) {
      without_target_run = 0;
      return prepared;
    }
    ++counters.without_target;
    ++without_target_run;
    from = prepared.after;
  }
}

ExampleStream::ExampleStream(std::vector<SourceConfig> sources, const Tokenizer& tokenizer,
                             ExampleStreamOptions options)
    : impl_(std::make_unique<Impl>(tokenizer, options)) {
  if (sources.empty()) throw InternalError("ExampleStream: no sources");
  for (SourceConfig& config : sources) {
    impl_->sources.push_back({std::move(config), nullptr, {}});
    impl_->scan(impl_->sources.back());
  }
  impl_->check_budget();
  for (const Source& source : impl_->sources) {
    if (source.places.empty()) throw InputError(str(source.config.path.string(), ": there is no good record in it"));
  }
}
ExampleStream::ExampleStream(ExampleStream&&) noexcept = default;
ExampleStream::~ExampleStream() = default;

std::int64_t ExampleStream::size() const { return impl_->size; }
StreamPosition ExampleStream::position() const { return impl_->position; }
const StreamCounters& ExampleStream::counters() const { return impl_->counters; }

const Example* ExampleStream::peek() {
  if (!impl_->ahead) impl_->ahead = impl_->advance();
  return impl_->ahead->example ? &*impl_->ahead->example : nullptr;
}

std::optional<Example> ExampleStream::next() {
  peek();
  Prepared prepared = std::move(*impl_->ahead);
  impl_->ahead.reset();
  impl_->position = prepared.after;
  return std::move(prepared.example);
}

void ExampleStream::seek(StreamPosition position) {
  if (position.epoch < 0 || position.next_index < 0 || position.next_token < 0 || position.next_index > impl_->size) {
    throw InputError(str("example ", position.next_index, " of epoch ", position.epoch,
                         " is not in the data, which has ", impl_->size,
                         "; did the files change since the checkpoint?"));
  }
  if (impl_->next_block.valid()) impl_->next_block.wait();
  impl_->next_block = {};
  impl_->block.clear();
  impl_->ahead.reset();
  impl_->without_target_run = 0;
  impl_->position = position;
}

}  // namespace dagmoe
