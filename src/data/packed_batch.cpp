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

}  // namespace

std::optional<StepBatch> next_step_batch(ExampleStream& stream, const StepBatchConfig& config) {
  StepBatch step;
  std::vector<Example> examples;
  const auto has_room = [&](const Example& example) {
    if (examples.empty()) return true;
    if (config.step_sequences > 0) return step.num_examples < config.step_sequences;
    return step.num_tokens + static_cast<std::int64_t>(example.tokens.size()) <= config.step_tokens;
  };
  for (const Example* ahead = stream.peek(); ahead != nullptr && has_room(*ahead); ahead = stream.peek()) {
    examples.push_back(*stream.next());
    step.num_examples += 1;
    step.num_tokens += static_cast<std::int64_t>(examples.back().tokens.size());
  }
  if (examples.empty()) {
    stream.next();  // the end of the epoch, so that the next one begins
    return std::nullopt;
  }

  std::vector<std::int64_t> lengths;
  for (const Example& example : examples) lengths.push_back(static_cast<std::int64_t>(example.tokens.size()));
  for (const auto& bin : even_bins(lengths, config.micro_batch_tokens, config.num_takers)) {
    PackedBatch& batch = step.micro_batches.emplace_back();
    for (const std::int64_t index : bin) append_example(batch, examples[static_cast<std::size_t>(index)]);
    step.num_targets += batch.num_targets;
  }
  return step;
}

}  // namespace dagmoe
