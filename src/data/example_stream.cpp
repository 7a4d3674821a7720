#include "data/example_stream.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "data/example_pipeline.h"

namespace dagmoe {
namespace {

// One example that was made but not taken.
struct Ready {
  std::optional<StreamExample> example;  // nullopt: the end of the epoch, or taken
  StreamPosition before, after;
  StreamCounters counts;  // what it adds, what was left out before it among that
  bool is_taken = false;
  bool is_end() const { return !example && !is_taken; }
};

void add_counts(StreamCounters& counters, const StreamCounters& counts) {
  for (const auto count : {&StreamCounters::truncated, &StreamCounters::prompts_cut, &StreamCounters::dropped,
                           &StreamCounters::split, &StreamCounters::without_target})
    counters.*count += counts.*count;
}

}  // namespace

struct ExampleStream::Impl {
  std::vector<RecordSource> sources;
  ExampleStreamOptions options;
  StreamCounters counters;
  std::vector<std::int64_t> draws;  // of each source, in an epoch
  std::int64_t size = 0;

  StreamPosition position;  // of what next() returns, without `taken`
  std::deque<Ready> ahead;
  std::int64_t left_out_run = 0;              // samples left out since the last one handed out
  std::unique_ptr<ExamplePipeline> pipeline;  // last: its threads read the sources

  void scan(std::vector<SourceConfig> configs);
  Ready advance(StreamPosition from);
  void fill(std::size_t count);
  std::int64_t index_of(std::int64_t num_untaken);
  Ready take_out(std::size_t index);
};

void ExampleStream::Impl::scan(std::vector<SourceConfig> configs) {
  const ScanOptions scan_options = {.limit = options.limit,
                                    .split = options.split,
                                    .valid_fraction = options.valid_fraction,
                                    .index_folder = options.index_folder,
                                    .index_min_bytes = options.index_min_bytes};
  BadRecords bad(options.bad_records_file);
  SeenRecords seen;
  for (SourceConfig& config : configs) {
    RecordSource& source = sources.emplace_back(std::move(config));
    source.scan(scan_options, options.deduplicate ? &seen : nullptr, bad);
    counters.records += source.num_records();
    counters.duplicates += source.num_duplicates();
  }
  bad.finish();
  counters.bad_records = bad.count();
  counters.bad_record_reports = bad.reports();
  bad.check_budget(options.max_bad_records, counters.records);
  std::vector<SourceShare> shares;
  for (const RecordSource& source : sources) {
    const bool left_out = source.num_duplicates() > 0 || options.split != DataSplit::kAll;
    if (source.size() == 0)
      throw InputError(str(source.config().path.string(), ": there is no good record in it",
                           left_out ? " that is left after deduplication and the split by valid_fraction" : ""));
    shares.push_back({source.size(), source.config().weight, source.config().epochs});
  }
  draws = draws_per_epoch(shares);
  size = std::accumulate(draws.begin(), draws.end(), std::int64_t{0});
}

// What follows `from`: an example with something to learn, or the end of the epoch.
Ready ExampleStream::Impl::advance(StreamPosition from) {
  Ready ready;
  ready.before = from;
  while (true) {
    PreparedExample prepared;
    try {
      prepared = pipeline->take();
    } catch (...) {
      pipeline->restart(from);
      throw;
    }
    ready.after = prepared.after;
    if (prepared.kind == PreparedExample::Kind::kEnd) {
      if (left_out_run >= size) {
        throw InputError(str("none of the ", size, " examples of ", sources[0].config().path.string(),
                             sources.size() > 1 ? " and the other files" : "",
                             " has a supervised token within max_seq_len (", options.max_seq_len, "); raise it"));
      }
      left_out_run = 0;
      return ready;
    }
    const bool is_dropped = prepared.kind == PreparedExample::Kind::kDropped;
    if (!is_dropped) {
      ready.counts.truncated += prepared.example.truncated;
      ready.counts.prompts_cut += prepared.example.prompt_cut;
      ready.counts.split += from.next_token == 0 && prepared.after.next_token > 0;
    }
    if (!is_dropped && prepared.example.num_targets() > 0) {
      left_out_run = 0;
      ready.example = std::move(prepared.example);
      return ready;
    }
    ++(is_dropped ? ready.counts.dropped : ready.counts.without_target);
    ++left_out_run;
    from = prepared.after;
  }
}

// Until `count` are there, or the epoch ends before.
void ExampleStream::Impl::fill(std::size_t count) {
  while (ahead.size() < count && (ahead.empty() || !ahead.back().is_end()))
    ahead.push_back(advance(ahead.empty() ? position : ahead.back().after));
}

// The place in `ahead` of the n-th that is not taken; that of the end of the epoch when it ends before.
std::int64_t ExampleStream::Impl::index_of(std::int64_t num_untaken) {
  for (std::size_t i = 0;; ++i) {
    fill(i + 1);
    if (ahead[i].is_end()) return static_cast<std::int64_t>(i);
    if (!ahead[i].is_taken && num_untaken-- == 0) return static_cast<std::int64_t>(i);
  }
}

Ready ExampleStream::Impl::take_out(std::size_t index) {
  Ready taken = std::move(ahead[index]);
  ahead[index] = {
      .example = std::nullopt, .before = taken.before, .after = taken.after, .counts = {}, .is_taken = true};
  add_counts(counters, taken.counts);
  while (!ahead.empty() && ahead.front().is_taken) {
    position = ahead.front().after;
    ahead.pop_front();
  }
  return taken;
}

ExampleStream::ExampleStream(std::vector<SourceConfig> sources, const Tokenizer& tokenizer,
                             ExampleStreamOptions options)
    : impl_(std::make_unique<Impl>()) {
  if (sources.empty()) throw InternalError("ExampleStream: no sources");
  impl_->options = std::move(options);
  impl_->scan(std::move(sources));
  impl_->pipeline = std::make_unique<ExamplePipeline>(impl_->sources, impl_->draws, tokenizer, impl_->options);
}
ExampleStream::ExampleStream(ExampleStream&&) noexcept = default;
ExampleStream::~ExampleStream() = default;

std::int64_t ExampleStream::size() const { return impl_->size; }
const StreamCounters& ExampleStream::counters() const { return impl_->counters; }

StreamPosition ExampleStream::position() const {
  StreamPosition position = impl_->position;
  for (std::size_t i = 0; i < impl_->ahead.size(); ++i) {
    if (impl_->ahead[i].is_taken) position.taken.push_back(static_cast<std::int64_t>(i));
  }
  return position;
}

const StreamExample* ExampleStream::peek(std::int64_t ahead) {
  const Ready& ready = impl_->ahead[static_cast<std::size_t>(impl_->index_of(ahead))];
  return ready.example ? &*ready.example : nullptr;
}

StreamExample ExampleStream::take(std::int64_t ahead) {
  Ready taken = impl_->take_out(static_cast<std::size_t>(impl_->index_of(ahead)));
  if (!taken.example) throw InternalError("ExampleStream: there is no example at this place");
  return std::move(*taken.example);
}

std::optional<StreamExample> ExampleStream::next() {
  return impl_->take_out(static_cast<std::size_t>(impl_->index_of(0))).example;
}

void ExampleStream::seek(StreamPosition position) {
  if (position.epoch < 0 || position.next_index < 0 || position.next_token < 0 || position.next_index > impl_->size) {
    throw InputError(str("example ", position.next_index, " of epoch ", position.epoch,
                         " is not in the data, which has ", impl_->size,
                         "; did the files change since the checkpoint?"));
  }
  const std::vector<std::int64_t> taken = std::move(position.taken);
  position.taken.clear();
  impl_->ahead.clear();
  impl_->left_out_run = 0;
  impl_->position = position;
  impl_->pipeline->restart(position);
  for (const std::int64_t index : taken) {
    const auto i = static_cast<std::size_t>(index);
    if (index > 0) impl_->fill(i + 1);
    if (index <= 0 || i >= impl_->ahead.size() || !impl_->ahead[i].example)
      throw InputError(str("example ", position.next_index, " and ", index,
                           " more is not in the data; did the files change since the checkpoint?"));
    impl_->ahead[i].example.reset();
    impl_->ahead[i].is_taken = true;
  }
}

std::int64_t ExampleStream::num_sources() const { return static_cast<std::int64_t>(impl_->sources.size()); }
std::string ExampleStream::source_name(std::size_t source) const {
  return impl_->sources[source].config().path.string();
}
SourceShare ExampleStream::source_share(std::size_t source) const {
  const RecordSource& found = impl_->sources[source];
  return {found.size(), found.config().weight, found.config().epochs};
}
std::int64_t ExampleStream::draws(std::size_t source) const { return impl_->draws[source]; }

std::string ExampleStream::place_of(const StreamExample& example) const {
  return str(impl_->sources[example.source].files()[example.file].string(), ":", example.line);
}

}  // namespace dagmoe
