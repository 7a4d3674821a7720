#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

/// Tokens [begin, end) of a sequence, which every sequence below shares; its prefix [0, begin) is its ancestors'.
struct PrefixNode {
  static constexpr std::size_t kRoot = std::numeric_limits<std::size_t>::max();
  std::size_t parent = kRoot;
  std::size_t sequence = 0;  ///< one of those that share it
  std::int64_t begin = 0, end = 0;
};

/// Sequences that share beginnings, as a tree in which each shared run stands once: what has to be computed.
struct PrefixTree {
  std::vector<PrefixNode> nodes;              ///< a parent before its children, each subtree without a gap
  std::vector<std::size_t> leaf_of_sequence;  ///< where its last token lies; kRoot for an empty sequence
};

/// Runs shorter than `min_shared` are repeated rather than shared: each one more costs attention a look elsewhere. No
/// node is longer than `max_node` tokens; longer runs become chains.
PrefixTree build_prefix_tree(std::span<const std::span<const TokenId>> sequences, std::int64_t min_shared,
                             std::int64_t max_node);

/// Nodes [first, last) of a tree, computed together.
struct PrefixPass {
  std::size_t first = 0, last = 0;
  /// Nodes of this pass that later ones stand on; the ones of earlier passes stay.
  std::vector<std::size_t> kept = {};
};
/// Splits a tree into passes of at most `max_tokens` tokens (a longer node is alone). At any time all that is kept is
/// one path from the root, so that the cache needs a row for each position of the longest.
std::vector<PrefixPass> plan_passes(const PrefixTree& tree, std::int64_t max_tokens);

}  // namespace dagmoe
