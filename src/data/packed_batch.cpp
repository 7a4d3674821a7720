#include "data/packed_batch.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace dagmoe {

void append_example(PackedBatch& batch, const Example& example) {
  const std::size_t length = example.tokens.size();
  if (batch.segment_offsets.empty()) batch.segment_offsets.push_back(0);
  for (std::size_t i = 0; i < length; ++i) {
    // Position i predicts token i + 1; the last one would predict the next example's first token.
    const bool counts = i + 1 < length && example.loss_mask[i + 1] != 0;
    batch.input_ids.push_back(example.tokens[i]);
    batch.position_ids.push_back(static_cast<std::int64_t>(i));
    batch.labels.push_back(counts ? example.tokens[i + 1] : kIgnoreIndex);
    batch.num_targets += counts;
  }
  batch.segment_offsets.push_back(batch.num_tokens());
}

std::vector<std::vector<std::int64_t>> first_fit_decreasing(std::span<const std::int64_t> lengths,
                                                            std::int64_t capacity) {
  const auto length = [&](std::int64_t index) { return lengths[static_cast<std::size_t>(index)]; };
  std::vector<std::int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return length(a) > length(b); });

  std::vector<std::vector<std::int64_t>> bins;
  std::vector<std::int64_t> room;
  for (const std::int64_t index : order) {
    const auto fit = std::find_if(room.begin(), room.end(), [&](std::int64_t left) { return left >= length(index); });
    const auto bin = static_cast<std::size_t>(fit - room.begin());
    if (fit == room.end()) {
      bins.emplace_back();
      room.push_back(capacity);
    }
    bins[bin].push_back(index);
    room[bin] -= length(index);
  }
  for (auto& bin : bins) std::sort(bin.begin(), bin.end());
  return bins;
}

namespace {

// Micro batches of at most `capacity`, a multiple of `num_takers` of them: the capacity is that of equal shares, and
// more by as little as first-fit needs. Examples too few or too unequal for that give what they give.
std::vector<std::vector<std::int64_t>> even_bins(std::span<const std::int64_t> lengths, std::int64_t capacity,
                                                 std::int64_t num_takers) {
  auto bins = first_fit_decreasing(lengths, capacity);
  if (num_takers == 1) return bins;
  const std::int64_t rounds = (static_cast<std::int64_t>(bins.size()) + num_takers - 1) / num_takers;
  const std::int64_t wanted = rounds * num_takers;
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  for (std::int64_t even = (total + wanted - 1) / wanted; even < capacity; even += even / 32 + 1) {
    auto found = first_fit_decreasing(lengths, even);
    if (static_cast<std::int64_t>(found.size()) <= wanted) return found;
  }
  return bins;
}

std::int64_t size_of(const Example& example) { return static_cast<std::int64_t>(example.tokens.size()); }

/// Takes the examples of one step.
class StepBuilder {
 public:
  StepBuilder(ExampleStream& stream, const StepBatchConfig& config)
      : stream_(stream),
        config_(config),
        bin_tokens_(fills_bins(config) ? config.micro_batch_tokens : std::numeric_limits<std::int64_t>::max()) {}
  /// Whether bins() are the micro batches; else the examples are distributed afterwards.
  static bool fills_bins(const StepBatchConfig& config) {
    return config.step_sequences == 0 && config.lookahead > 1 && config.num_takers == 1;
  }

  void take_sequences() {
    while (std::ssize(examples_) < config_.step_sequences && stream_.peek() != nullptr) take(0);
  }
  void take_tokens() {
    while (fill_bin()) {
    }
  }
  const std::vector<StreamExample>& examples() const { return examples_; }
  const std::vector<std::vector<std::int64_t>>& bins() const { return bins_; }

 private:
  void take(std::int64_t ahead) {
    examples_.push_back(stream_.take(ahead));
    num_tokens_ += size_of(examples_.back());
    if (!bins_.empty()) bins_.back().push_back(std::ssize(examples_) - 1);
  }
  // One more micro batch; false when the step has no room for another.
  bool fill_bin() {
    const StreamExample* next = stream_.peek();
    if (next == nullptr) return false;
    const std::int64_t left = config_.step_tokens - num_tokens_;
    const bool is_long = size_of(*next) > bin_tokens_ && (size_of(*next) <= left || examples_.empty());
    std::int64_t room = std::min(left, bin_tokens_);
    if (is_long || (examples_.empty() && size_of(*next) > room)) {
      bins_.emplace_back();
      take(0);
      return true;
    }
    bins_.emplace_back();
    for (std::int64_t ahead = best_fit(room); ahead >= 0; ahead = best_fit(room)) {
      take(ahead);
      room -= size_of(examples_.back());
    }
    if (!bins_.back().empty()) return true;
    bins_.pop_back();
    return false;
  }
  // The next example if it fits, else the longest of those ahead that does; -1 when none does.
  std::int64_t best_fit(std::int64_t room) {
    std::int64_t best = -1, best_size = 0;
    for (std::int64_t ahead = 0; ahead < std::max<std::int64_t>(config_.lookahead, 1); ++ahead) {
      const StreamExample* example = stream_.peek(ahead);
      if (example == nullptr) break;
      const std::int64_t size = size_of(*example);
      if (size > room || size <= best_size) continue;
      best = ahead;
      best_size = size;
      if (ahead == 0 || size == room) break;
    }
    return best;
  }

  ExampleStream& stream_;
  const StepBatchConfig& config_;
  std::int64_t bin_tokens_;
  std::vector<StreamExample> examples_;
  std::vector<std::vector<std::int64_t>> bins_;
  std::int64_t num_tokens_ = 0;
};

}  // namespace

std::optional<StepBatch> next_step_batch(ExampleStream& stream, const StepBatchConfig& config) {
  StepBuilder builder(stream, config);
  config.step_sequences > 0 ? builder.take_sequences() : builder.take_tokens();
  const std::vector<StreamExample>& examples = builder.examples();
  if (examples.empty()) {
    stream.next();  // the end of the epoch, so that the next one begins
    return std::nullopt;
  }
  StepBatch step;
  step.num_examples = std::ssize(examples);
  step.sources.resize(static_cast<std::size_t>(stream.num_sources()));
  std::vector<std::int64_t> lengths;
  for (const StreamExample& example : examples) {
    lengths.push_back(size_of(example));
    step.num_tokens += lengths.back();
    SourceCounts& source = step.sources[example.source];
    source.samples += 1, source.tokens += lengths.back(), source.supervised_tokens += example.num_targets();
  }
  for (const auto& bin : StepBuilder::fills_bins(config)
                             ? builder.bins()
                             : even_bins(lengths, config.micro_batch_tokens, config.num_takers)) {
    PackedBatch& batch = step.micro_batches.emplace_back();
    for (const std::int64_t index : bin) append_example(batch, examples[static_cast<std::size_t>(index)]);
    step.num_targets += batch.num_targets;
  }
  return step;
}

}  // namespace dagmoe
