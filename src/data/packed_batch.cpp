#include "data/packed_batch.h"

#include <algorithm>
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

// The next example if it fits, else the longest of those ahead that does; -1 when none does.
std::int64_t best_fit(ExampleStream& stream, std::int64_t room, std::int64_t lookahead) {
  std::int64_t best = -1, best_size = 0;
  for (std::int64_t ahead = 0; ahead < std::max<std::int64_t>(lookahead, 1); ++ahead) {
    const StreamExample* example = stream.peek(ahead);
    if (example == nullptr) break;
    const std::int64_t size = size_of(*example);
    if (size > room || size <= best_size) continue;
    best = ahead;
    best_size = size;
    if (ahead == 0 || size == room) break;
  }
  return best;
}

// The examples of one step; how they are split into micro batches has no say in it.
std::vector<StreamExample> take_step(ExampleStream& stream, const StepBatchConfig& config) {
  std::vector<StreamExample> examples;
  if (config.step_sequences > 0) {
    while (std::ssize(examples) < config.step_sequences && stream.peek() != nullptr) examples.push_back(stream.take(0));
    return examples;
  }
  if (stream.peek() == nullptr) return examples;
  examples.push_back(stream.take(0));
  std::int64_t room = config.step_tokens - size_of(examples.back());
  for (std::int64_t ahead = best_fit(stream, room, config.lookahead); ahead >= 0;
       ahead = best_fit(stream, room, config.lookahead)) {
    examples.push_back(stream.take(ahead));
    room -= size_of(examples.back());
  }
  return examples;
}

}  // namespace

std::optional<StepBatch> next_step_batch(ExampleStream& stream, const StepBatchConfig& config) {
  const std::vector<StreamExample> examples = take_step(stream, config);
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
  for (const auto& bin : even_bins(lengths, config.micro_batch_tokens, config.num_takers)) {
    PackedBatch& batch = step.micro_batches.emplace_back();
    for (const std::int64_t index : bin) append_example(batch, examples[static_cast<std::size_t>(index)]);
    step.num_targets += batch.num_targets;
  }
  return step;
}

}  // namespace dagmoe
