#include "eval/prefix_tree.h"

#include <map>
#include <random>
#include <set>

#include "eval/row_allocator.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Ids = std::vector<TokenId>;

PrefixTree tree_of(const std::vector<Ids>& sequences, std::int64_t min_shared, std::int64_t max_node = 1000) {
  const std::vector<std::span<const TokenId>> views(sequences.begin(), sequences.end());
  return build_prefix_tree(views, min_shared, max_node);
}

// The tokens on the way from the root to a node.
Ids path_to(const PrefixTree& tree, const std::vector<Ids>& sequences, std::size_t node) {
  if (node == PrefixNode::kRoot) return {};
  const PrefixNode& last = tree.nodes[node];
  Ids path = path_to(tree, sequences, last.parent);
  REQUIRE(static_cast<std::int64_t>(path.size()) == last.begin);
  const Ids& tokens = sequences[last.sequence];
  path.insert(path.end(), tokens.begin() + last.begin, tokens.begin() + last.end);
  return path;
}

std::int64_t num_tokens(const PrefixTree& tree) {
  std::int64_t sum = 0;
  for (const PrefixNode& node : tree.nodes) sum += node.end - node.begin;
  return sum;
}

std::vector<Ids> random_sequences(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](std::uint32_t n) { return random() % n; };
  std::vector<Ids> sequences;
  for (int i = 0; i < 40; ++i) {
    Ids ids;
    if (!sequences.empty() && below(4) > 0) {  // goes on from the beginning of another
      const Ids& other = sequences[below(static_cast<std::uint32_t>(sequences.size()))];
      ids.assign(other.begin(), other.begin() + below(static_cast<std::uint32_t>(other.size()) + 1));
    }
    for (std::uint32_t n = below(12); n > 0; --n) ids.push_back(static_cast<TokenId>(below(3)));
    sequences.push_back(ids);
  }
  return sequences;
}

TEST_CASE("prefix_tree: what sequences share stands once", "[eval]") {
  const std::vector<Ids> sequences = {{1, 2, 3, 4}, {1, 2, 3, 5, 6}, {1, 2, 3}, {7}, {1, 2, 3, 4}, {}};
  const PrefixTree tree = tree_of(sequences, 1);
  CHECK(num_tokens(tree) == 3 + 1 + 2 + 1);
  CHECK(tree.leaf_of_sequence[0] == tree.leaf_of_sequence[4]);
  CHECK(tree.leaf_of_sequence[5] == PrefixNode::kRoot);
}

TEST_CASE("prefix_tree: short common beginnings are repeated", "[eval]") {
  const std::vector<Ids> sequences = {{1, 2, 3, 4}, {1, 2, 3, 5, 6}, {1, 9}};
  CHECK(num_tokens(tree_of(sequences, 2)) == 3 + 1 + 2 + 2);
  CHECK(num_tokens(tree_of(sequences, 4)) == 4 + 5 + 2);
}

TEST_CASE("prefix_tree: every sequence is the way to its leaf, parents come first, subtrees have no gap", "[eval]") {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    const std::vector<Ids> sequences = random_sequences(seed);
    for (const std::int64_t min_shared : {1, 3}) {
      for (const std::int64_t max_node : {1, 4, 1000}) {
        INFO("seed " << seed << ", min_shared " << min_shared << ", max_node " << max_node);
        const PrefixTree tree = tree_of(sequences, min_shared, max_node);
        for (std::size_t s = 0; s < sequences.size(); ++s)
          REQUIRE(path_to(tree, sequences, tree.leaf_of_sequence[s]) == sequences[s]);
        std::vector<std::size_t> path;  // the open subtrees
        for (std::size_t n = 0; n < tree.nodes.size(); ++n) {
          REQUIRE(tree.nodes[n].end - tree.nodes[n].begin <= max_node);
          while (!path.empty() && path.back() != tree.nodes[n].parent) path.pop_back();
          REQUIRE((tree.nodes[n].parent == PrefixNode::kRoot || !path.empty()));
          path.push_back(n);
        }
        if (min_shared == 1) {
          std::set<Ids> prefixes;
          for (const Ids& ids : sequences) {
            for (std::size_t i = 1; i <= ids.size(); ++i) prefixes.insert(Ids(ids.begin(), ids.begin() + i));
          }
          REQUIRE(num_tokens(tree) == static_cast<std::int64_t>(prefixes.size()));
        }
      }
    }
  }
}

TEST_CASE("plan_passes: passes keep to the budget, and the cache holds whatever later passes stand on", "[eval]") {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    const std::vector<Ids> sequences = random_sequences(seed);
    for (const std::int64_t budget : {1, 7, 1000}) {
      INFO("seed " << seed << ", budget " << budget);
      const PrefixTree tree = tree_of(sequences, 1, std::max<std::int64_t>(1, budget / 2));
      std::map<std::int64_t, std::size_t> cached;  // position -> whose it is
      std::size_t next = 0;
      for (const PrefixPass& pass : plan_passes(tree, budget)) {
        REQUIRE(pass.first == next);
        next = pass.last;
        std::int64_t size = 0;
        for (std::size_t n = pass.first; n < pass.last; ++n) {
          size += tree.nodes[n].end - tree.nodes[n].begin;
          for (std::size_t a = tree.nodes[n].parent; a != PrefixNode::kRoot; a = tree.nodes[a].parent) {
            if (a >= pass.first) continue;
            for (std::int64_t p = tree.nodes[a].begin; p < tree.nodes[a].end; ++p) REQUIRE(cached[p] == a);
          }
        }
        REQUIRE(size <= budget);
        for (const std::size_t n : pass.kept) {
          for (std::int64_t p = tree.nodes[n].begin; p < tree.nodes[n].end; ++p) cached[p] = n;
        }
      }
      REQUIRE(next == tree.nodes.size());
    }
  }
}

TEST_CASE("row_allocator: ranges never overlap, and what is released can be had again", "[eval]") {
  std::mt19937 random(3);
  RowAllocator rows(10, 110);
  std::map<std::int64_t, std::int64_t> held;
  for (int step = 0; step < 2000; ++step) {
    if (!held.empty() && random() % 2 == 0) {
      const auto any = std::next(held.begin(), static_cast<std::ptrdiff_t>(random() % held.size()));
      rows.release(any->first, any->second);
      held.erase(any);
      continue;
    }
    const auto count = static_cast<std::int64_t>(1 + random() % 40);
    if (const auto begin = rows.allocate(count)) held[*begin] = count;
    std::int64_t free_from = 10;
    for (const auto& [begin, size] : held) {
      REQUIRE(begin >= free_from);
      free_from = begin + size;
    }
    REQUIRE(free_from <= 110);
  }
  for (const auto& [begin, size] : held) rows.release(begin, size);
  CHECK(rows.allocate(100) == 10);
  CHECK_FALSE(rows.allocate(1));
  CHECK_FALSE(RowAllocator(5, 5).allocate(1));
}

}  // namespace
}  // namespace dagmoe
