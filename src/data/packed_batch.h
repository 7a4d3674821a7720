#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "data/example_stream.h"

namespace dagmoe {

/// A label that takes no part in the loss; Hugging Face's value.
inline constexpr std::int64_t kIgnoreIndex = -100;

/// Whole examples back to back, without padding; attention stays inside each.
///   input_ids        a0 a1 a2 b0 b1
///   position_ids      0  1  2  0  1
///   segment_offsets   0 ..... 3 ... 5
///   labels           a1 a2  *  b1  *    * = kIgnoreIndex; already shifted by one, masked where the target is prompt
struct PackedBatch {
  std::vector<std::int64_t> input_ids, position_ids, labels, segment_offsets;
  std::int64_t num_targets = 0;  ///< labels that count
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(input_ids.size()); }
  std::int64_t num_segments() const { return static_cast<std::int64_t>(segment_offsets.size()) - 1; }
};

/// Appends one example; the first one starts the offsets.
void append_example(PackedBatch& batch, const Example& example);

/// Distributes items over bins of `capacity` by first-fit decreasing: longest first, each into the first bin with room,
/// equal lengths in their given order. Returns the indices per bin, ascending. An item longer than `capacity` gets a
/// bin of its own.
std::vector<std::vector<std::int64_t>> first_fit_decreasing(std::span<const std::int64_t> lengths,
                                                            std::int64_t capacity);

/// The micro batches of one optimizer step: whole examples in the order of the stream, until `step_tokens` are full, or
/// `step_sequences` examples when that is not 0. Every example is used exactly once; a step never mixes epochs.
/// - By tokens, where the next example does not fit any more, the longest that does among the next `lookahead` ones is
///   taken before its turn, and again, until none fits. A step begins with the next one, so that none waits for ever.
/// - Which examples a step has does not depend on `micro_batch_tokens` or `num_takers`: they are distributed over micro
///   batches afterwards, by first-fit decreasing.
///   An example longer than that is alone in one.
struct StepBatchConfig {
  std::int64_t step_tokens = 4096;
  std::int64_t step_sequences = 0;
  std::int64_t micro_batch_tokens = 4096;
  std::int64_t lookahead = 1;  ///< 1: strictly in order
  /// So many processes take turns at the micro batches: their number is made a multiple of it where there are examples
  /// enough, by making them smaller and about equal.
  std::int64_t num_takers = 1;
};
/// What a step takes from one source of the stream.
struct SourceCounts {
  std::int64_t samples = 0, tokens = 0, supervised_tokens = 0;
};
struct StepBatch {
  std::vector<PackedBatch> micro_batches;
  std::int64_t num_targets = 0, num_tokens = 0, num_examples = 0;
  std::vector<SourceCounts> sources;  ///< by source of the stream
};
/// nullopt at the end of an epoch. A step may be smaller there. An example longer than micro_batch_tokens gets its own
/// batch.
std::optional<StepBatch> next_step_batch(ExampleStream& stream, const StepBatchConfig& config);

}  // namespace dagmoe
