#pragma once

#include <cstdint>
#include <vector>

#include "data/packed_batch.h"

namespace dagmoe {

/// A packed batch in which examples that begin alike (a prompt template, a system prompt) have their beginning once:
/// causal attention gives these tokens the same values in every example, and none of them is a target. A prefix lies in
/// front of the examples that go on from it.
///   examples   a b c x   a b c y z       (a b c: no targets)
///   rows       a b c | x | y z
struct SharedBatch {
  /// position_ids go on across a prefix. num_targets is that of the batch: no label is lost.
  PackedBatch rows;
  std::vector<std::int64_t>
      prefixes;  ///< the segment that each segment goes on from, -1: none; empty: nothing is shared
  std::vector<std::int64_t> row_of_token;  ///< of the batch's tokens in their order; empty: nothing is shared
};

/// The prefixes, one for each example at most, that leave the fewest rows; the shorter of two that leave as many. Less
/// than `min_saved` rows are not worth the parting of a batch: it stays as it is.
SharedBatch share_prefixes(const PackedBatch& batch, std::int64_t min_saved = 16);

}  // namespace dagmoe
