#include "data/example_pipeline.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// A block is as many samples, or as many bytes of text: what a thread makes between two looks at the queue.
constexpr std::size_t kBlockSamples = 64;
constexpr std::int64_t kBlockBytes = std::int64_t{1} << 20;
constexpr std::size_t kMaxOpenFiles = 64;

std::size_t thread_count(std::int64_t wanted) {
  if (wanted > 0) return static_cast<std::size_t>(wanted);
  return std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 8);
}

}  // namespace

EpochPlan::EpochPlan(const std::vector<RecordSource>& sources, std::vector<std::int64_t> draws, bool shuffle,
                     std::uint64_t seed)
    : sources_(sources), draws_(std::move(draws)), shuffle_(shuffle), seed_(seed) {
  for (const std::int64_t count : draws_) {
    first_.push_back(size_);
    size_ += count;
  }
}

std::size_t EpochPlan::source_of(std::int64_t slot) const {
  return static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), slot) - first_.begin()) - 1;
}

void EpochPlan::begin_epoch(std::int64_t epoch) {
  const bool is_short = size_ <= std::int64_t{std::numeric_limits<std::uint32_t>::max()};
  short_order_ = {};  // before the next one is made
  if (shuffle_ && is_short) short_order_ = short_epoch_order(size_, seed_, epoch);
  if (shuffle_ && !is_short) order_ = epoch_order(size_, seed_, epoch);
  order_epoch_ = epoch;
  next_place_ = 0;
  num_drawn_.assign(draws_.size(), 0);
}

std::int64_t EpochPlan::slot_at(std::int64_t place) const {
  if (!shuffle_) return place;
  const auto at = static_cast<std::size_t>(place);
  return order_.empty() ? short_order_[at] : order_[at];
}

EpochPlan::Draw EpochPlan::draw(std::int64_t epoch, std::int64_t place) {
  if (epoch != order_epoch_ || place < next_place_) begin_epoch(epoch);
  for (; next_place_ < place; ++next_place_) ++num_drawn_[source_of(slot_at(next_place_))];
  ++next_place_;
  const std::int64_t slot = slot_at(place);
  const std::size_t s = source_of(slot);
  const std::int64_t nth = num_drawn_[s]++;
  // A sequential source gives its records in its own order, whichever of its slots comes first.
  const std::int64_t drawn = sources_[s].is_sequential() ? nth : slot - first_[s];
  const std::int64_t size = sources_[s].size(), all = epoch * draws_[s] + drawn;
  Draw found{s, all / size, all % size};
  const bool is_one_pass = draws_[s] == size;
  if (shuffle_ && !is_one_pass && !sources_[s].is_sequential()) {
    const std::uint64_t pass_seed = seed_ + static_cast<std::uint64_t>(found.pass) * 0xD1B54A32D192ED03ULL + s;
    found.index = permuted_item(found.index, size, pass_seed);
  }
  return found;
}

/// What one thread needs for itself.
class ExamplePipeline::Worker {
 public:
  explicit Worker(const ExamplePipeline& pipeline) : pipeline_(pipeline) {}
  Block make(Job job);

 private:
  void append_sample(const Slot& slot, StreamPosition& from, std::deque<PreparedExample>& made);
  void append_document(const StreamExample& document, StreamPosition& from, std::deque<PreparedExample>& made) const;
  RecordReader& reader(std::size_t source, std::size_t file);

  const ExamplePipeline& pipeline_;
  std::map<std::pair<std::size_t, std::size_t>, std::unique_ptr<RecordReader>> readers_;
  RecordParser parser_;
  RawRecord raw_;
};

RecordReader& ExamplePipeline::Worker::reader(std::size_t source, std::size_t file) {
  auto& found = readers_[{source, file}];
  if (found) return *found;
  if (readers_.size() > kMaxOpenFiles) readers_.clear();
  auto& opened = readers_[{source, file}];
  opened = RecordReader::open(pipeline_.sources_[source].files()[file]);
  return *opened;
}

// All that is left of a document becomes examples at once, so that it is tokenized once.
void ExamplePipeline::Worker::append_document(const StreamExample& document, StreamPosition& from,
                                              std::deque<PreparedExample>& made) const {
  const std::int64_t index = from.next_index;
  while (from.next_index == index) {
    StreamExample part{document_part(document, from.next_token, pipeline_.options_.max_seq_len)};
    part.source = document.source, part.file = document.file;
    if (from.next_token == static_cast<std::int64_t>(document.tokens.size())) from = {from.epoch, index + 1, 0};
    made.push_back({PreparedExample::Kind::kExample, std::move(part), from});
  }
}

void ExamplePipeline::Worker::append_sample(const Slot& slot, StreamPosition& from, std::deque<PreparedExample>& made) {
  const RecordSource& source = pipeline_.sources_[slot.draw.source];
  const ExampleStreamOptions& options = pipeline_.options_;
  std::size_t file = 0;
  std::int64_t line = 0;
  bool is_there = true;
  if (slot.fetched) {
    file = slot.fetched->file, line = slot.fetched->line;
    const std::string_view text(slot.fetched->text);
    is_there = parser_.parse(text.substr(0, text.size() - RecordParser::kPadding), false, raw_).empty();
  } else {
    const RecordSource::Place place = source.place(slot.draw.index);
    file = place.file, line = place.place.line;
    RecordReader& from_file = reader(slot.draw.source, file);
    from_file.seek(place.place.offset, line);
    std::unique_ptr<BadRecord> bad;
    is_there = from_file.next(raw_, bad) && !bad;
    line = bad ? bad->line : is_there ? raw_.line : line;  // blank lines may lie before it
  }
  try {
    if (!is_there) throw InputError("the file has changed since it was opened; start again");
    const std::vector<PromptPiece> pieces = sample_pieces(source.config(), raw_);
    const auto place_example = [&](StreamExample& example) {
      example.line = line, example.source = slot.draw.source, example.file = file;
    };
    if (source.config().format == RecordFormat::kText) {
      StreamExample document{make_example(pipeline_.tokenizer_, pieces, std::numeric_limits<std::int64_t>::max())};
      place_example(document);
      if (static_cast<std::int64_t>(document.tokens.size()) > options.max_seq_len || from.next_token > 0)
        return append_document(document, from, made);
      from = {from.epoch, from.next_index + 1, 0};
      made.push_back({PreparedExample::Kind::kExample, std::move(document), from});
      return;
    }
    std::optional<StreamExample> example = make_example(
        pipeline_.tokenizer_, pieces,
        LengthRule{options.tokenization, options.max_seq_len, options.long_samples, options.ends_cut_with_eos});
    from = {from.epoch, from.next_index + 1, 0};
    if (example) place_example(*example);
    made.push_back({example ? PreparedExample::Kind::kExample : PreparedExample::Kind::kDropped,
                    example ? std::move(*example) : StreamExample{}, from});
  } catch (const InputError& error) {
    throw InputError(str(source.files()[file].string(), ":", line, ": ", error.what()));
  }
}

ExamplePipeline::Block ExamplePipeline::Worker::make(Job job) {
  Block block;
  StreamPosition position = job.from;
  try {
    for (const Slot& slot : job.slots) append_sample(slot, position, block.made);
  } catch (...) {
    block.error = std::current_exception();
    return block;
  }
  block.error = job.error;
  if (job.ends_epoch) block.made.push_back({PreparedExample::Kind::kEnd, {}, {position.epoch + 1, 0, 0}});
  return block;
}

ExamplePipeline::ExamplePipeline(const std::vector<RecordSource>& sources, std::vector<std::int64_t> draws,
                                 const Tokenizer& tokenizer, const ExampleStreamOptions& options)
    : sources_(sources),
      tokenizer_(tokenizer),
      options_(options),
      plan_(sources, std::move(draws), options.shuffle, options.seed),
      max_ahead_(thread_count(options.num_threads) + 2) {
  for (const RecordSource& source : sources) {
    sequential_.push_back(source.is_sequential()
                              ? std::make_unique<SequentialReader>(
                                    source, options.shuffle, options.seed + sequential_.size(), options.shuffle_buffer)
                              : nullptr);
  }
}

ExamplePipeline::~ExamplePipeline() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  room_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ExamplePipeline::claim_slots(Job& job) {
  const std::int64_t left = plan_.size() - claim_position_.next_index;
  std::int64_t num_bytes = 0;
  while (job.slots.size() < kBlockSamples && num_bytes < kBlockBytes) {
    const auto place = static_cast<std::int64_t>(job.slots.size());
    job.ends_epoch = place == left;
    if (job.ends_epoch) break;
    Slot slot{plan_.draw(claim_position_.epoch, claim_position_.next_index + place), {}};
    const EpochPlan::Draw& draw = slot.draw;
    if (sequential_[draw.source]) {
      slot.fetched = sequential_[draw.source]->fetch(draw.pass, draw.index);
      num_bytes += static_cast<std::int64_t>(slot.fetched->text.size());
    } else {
      num_bytes += sources_[draw.source].place(draw.index).num_bytes;
    }
    job.slots.push_back(std::move(slot));
  }
}

ExamplePipeline::Job ExamplePipeline::claim() {
  Job job{.generation = generation_, .number = next_claim_++, .from = claim_position_, .slots = {}, .error = nullptr};
  try {
    claim_slots(job);
  } catch (...) {
    job.error = std::current_exception();
  }
  const auto num_slots = static_cast<std::int64_t>(job.slots.size());
  if (job.ends_epoch) {
    claim_position_ = {claim_position_.epoch + 1, 0, 0};
  } else if (num_slots > 0) {
    claim_position_ = {claim_position_.epoch, claim_position_.next_index + num_slots, 0};
  }
  return job;
}

void ExamplePipeline::work() {
  Worker worker(*this);
  std::unique_lock lock(mutex_);
  while (true) {
    room_.wait(lock, [this] { return stops_ || next_claim_ < next_take_ + max_ahead_; });
    if (stops_) return;
    Job job = claim();
    const std::uint64_t generation = job.generation, number = job.number;
    lock.unlock();
    Block block = worker.make(std::move(job));
    lock.lock();
    if (generation != generation_) continue;  // nobody waits for it any more
    blocks_.emplace(number, std::move(block));
    done_.notify_one();
  }
}

PreparedExample ExamplePipeline::take() {
  while (block_.made.empty()) {
    if (block_.error) std::rethrow_exception(std::exchange(block_.error, nullptr));
    std::unique_lock lock(mutex_);
    while (threads_.size() + 2 < max_ahead_) threads_.emplace_back([this] { work(); });
    done_.wait(lock, [this] { return blocks_.contains(next_take_); });
    block_ = std::move(blocks_.extract(next_take_++).mapped());
    room_.notify_all();
  }
  PreparedExample first = std::move(block_.made.front());
  block_.made.pop_front();
  return first;
}

void ExamplePipeline::restart(StreamPosition position) {
  block_ = {};
  {
    const std::lock_guard lock(mutex_);
    ++generation_;
    blocks_.clear();
    next_claim_ = next_take_ = 0;
    claim_position_ = std::move(position);
  }
  room_.notify_all();
}

}  // namespace dagmoe
