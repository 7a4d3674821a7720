#include "eval/prefix_tree.h"

#include <algorithm>
#include <numeric>

namespace dagmoe {
namespace {

class Builder {
 public:
  Builder(std::span<const std::span<const TokenId>> sequences, std::int64_t min_shared, std::int64_t max_node)
      : sequences_(sequences), min_shared_(min_shared), max_node_(max_node), sorted_(sequences.size()) {
    std::iota(sorted_.begin(), sorted_.end(), std::size_t{0});
    std::stable_sort(sorted_.begin(), sorted_.end(), [&](std::size_t a, std::size_t b) {
      return std::lexicographical_compare(sequences[a].begin(), sequences[a].end(), sequences[b].begin(),
                                          sequences[b].end());
    });
    tree_.leaf_of_sequence.assign(sequences.size(), PrefixNode::kRoot);
  }

  PrefixTree build() {
    std::size_t first = 0;
    while (first < sorted_.size() && sequence(first).empty()) ++first;
    if (first < sorted_.size()) add({first, sorted_.size()}, PrefixNode::kRoot, 0, 0);
    return std::move(tree_);
  }

 private:
  /// A part of the sorted sequences.
  struct Range {
    std::size_t first, last;
  };
  std::span<const TokenId> sequence(std::size_t i) const { return sequences_[sorted_[i]]; }

  // Sequences that have [0, known) in common and whose tokens up to `begin` lie in `parent` and above.
  void add(Range range, std::size_t parent, std::int64_t begin, std::int64_t known) {
    const auto lowest = sequence(range.first), highest = sequence(range.last - 1);
    const auto split = std::mismatch(lowest.begin() + known, lowest.end(), highest.begin() + known, highest.end());
    const std::int64_t common = split.first - lowest.begin();
    const bool is_one_text = static_cast<std::int64_t>(highest.size()) == common;
    std::size_t next = range.first;
    if (is_one_text || common - begin >= min_shared_) {
      parent = add_nodes(sorted_[range.first], parent, begin, common);
      begin = common;
      for (; next < range.last && size_of(next) == common; ++next) tree_.leaf_of_sequence[sorted_[next]] = parent;
    } else if (size_of(next) == common) {
      const std::size_t leaf = add_nodes(sorted_[next], parent, begin, common);
      for (; next < range.last && size_of(next) == common; ++next) tree_.leaf_of_sequence[sorted_[next]] = leaf;
    }
    while (next < range.last) {
      const TokenId token = sequence(next)[static_cast<std::size_t>(common)];
      std::size_t last = next + 1;
      while (last < range.last && sequence(last)[static_cast<std::size_t>(common)] == token) ++last;
      add({next, last}, parent, begin, common + 1);
      next = last;
    }
  }

  std::int64_t size_of(std::size_t i) const { return static_cast<std::int64_t>(sequence(i).size()); }

  // Returns the last node.
  std::size_t add_nodes(std::size_t of_sequence, std::size_t parent, std::int64_t begin, std::int64_t end) {
    for (; begin < end; begin += max_node_) {
      tree_.nodes.push_back({parent, of_sequence, begin, std::min(begin + max_node_, end)});
      parent = tree_.nodes.size() - 1;
    }
    return parent;
  }

  std::span<const std::span<const TokenId>> sequences_;
  std::int64_t min_shared_, max_node_;
  std::vector<std::size_t> sorted_;
  PrefixTree tree_;
};

}  // namespace

PrefixTree build_prefix_tree(std::span<const std::span<const TokenId>> sequences, std::int64_t min_shared,
                             std::int64_t max_node) {
  return Builder(sequences, min_shared, max_node).build();
}

std::vector<PrefixPass> plan_passes(const PrefixTree& tree, std::int64_t max_tokens) {
  std::vector<PrefixPass> passes;
  for (std::size_t first = 0; first < tree.nodes.size();) {
    PrefixPass pass{.first = first, .last = first};
    std::int64_t num_tokens = 0;
    do {
      num_tokens += tree.nodes[pass.last].end - tree.nodes[pass.last].begin;
      ++pass.last;
    } while (pass.last < tree.nodes.size() &&
             num_tokens + tree.nodes[pass.last].end - tree.nodes[pass.last].begin <= max_tokens);
    if (pass.last < tree.nodes.size()) {
      for (std::size_t n = tree.nodes[pass.last].parent; n != PrefixNode::kRoot && n >= first; n = tree.nodes[n].parent)
        pass.kept.push_back(n);
    }
    first = pass.last;
    passes.push_back(std::move(pass));
  }
  return passes;
}

}  // namespace dagmoe
