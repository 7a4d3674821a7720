#include "data/shared_prefixes.h"

#include <algorithm>
#include <random>

#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Ints = std::vector<std::int64_t>;

// The first `prompt` tokens are none of the targets.
void append(PackedBatch& batch, std::vector<TokenId> tokens, std::size_t prompt) {
  std::vector<std::uint8_t> mask(tokens.size(), 1);
  std::fill_n(mask.begin(), prompt, std::uint8_t{0});
  append_example(batch, {.tokens = std::move(tokens), .loss_mask = std::move(mask)});
}

TEST_CASE("shared prefixes: a beginning of two examples lies there once, as drawn", "[data]") {
  PackedBatch batch;
  append(batch, {1, 2, 3, 7}, 3);
  append(batch, {1, 2, 4, 8, 9}, 3);
  const SharedBatch shared = share_prefixes(batch, 1);
  CHECK(shared.rows.input_ids == Ints{1, 2, 3, 7, 4, 8, 9});
  CHECK(shared.rows.position_ids == Ints{0, 1, 2, 3, 2, 3, 4});
  CHECK(shared.rows.labels == Ints{-100, -100, 7, -100, 8, 9, -100});
  CHECK(shared.rows.segment_offsets == Ints{0, 2, 4, 7});
  CHECK(shared.prefixes == Ints{-1, 0, 0});
  CHECK(shared.row_of_token == Ints{0, 1, 2, 3, 0, 1, 4, 5, 6});
  CHECK(shared.rows.num_targets == batch.num_targets);
}

TEST_CASE("shared prefixes: a token that predicts a target is not shared", "[data]") {
  PackedBatch batch;  // both predict their own target from the 3
  append(batch, {1, 2, 3, 7}, 3);
  append(batch, {1, 2, 3, 8}, 3);
  const SharedBatch shared = share_prefixes(batch, 1);
  CHECK(shared.rows.segment_offsets == Ints{0, 2, 4, 6});
  PackedBatch unmasked;
  append(unmasked, {1, 2, 3}, 0);
  append(unmasked, {1, 2, 3}, 0);
  const SharedBatch same = share_prefixes(unmasked, 1);
  CHECK(same.prefixes.empty());
  CHECK(same.row_of_token.empty());
  CHECK(same.rows.input_ids == unmasked.input_ids);
}

TEST_CASE("shared prefixes: every example keeps a token of its own, targets or not", "[data]") {
  PackedBatch batch;
  append(batch, {1, 2, 3}, 3);
  append(batch, {1, 2, 3}, 3);
  const SharedBatch shared = share_prefixes(batch, 1);
  CHECK(shared.rows.input_ids == Ints{1, 2, 3, 3});
  CHECK(shared.rows.segment_offsets == Ints{0, 2, 3, 4});
}

TEST_CASE("shared prefixes: each example has the one that saves most over all", "[data]") {
  PackedBatch batch;  // two with five tokens in common, three others with four; all five share two
  append(batch, {1, 2, 3, 4, 5, 60, 7}, 6);
  append(batch, {1, 2, 8, 8, 61, 7}, 5);
  append(batch, {1, 2, 3, 4, 5, 62, 7}, 6);
  append(batch, {1, 2, 8, 8, 63, 7}, 5);
  append(batch, {1, 2, 8, 8, 64, 7}, 5);
  append(batch, {9, 9, 9}, 2);
  const SharedBatch shared = share_prefixes(batch, 1);
  CHECK(shared.rows.num_tokens() == batch.num_tokens() - 5 - 2 * 4);
  CHECK(shared.prefixes == Ints{-1, 0, -1, 2, 0, 2, 2, -1});
}

TEST_CASE("shared prefixes: a batch that saves too little stays as it is", "[data]") {
  PackedBatch batch;
  append(batch, {1, 2, 3, 7}, 3);
  append(batch, {1, 2, 4, 8}, 3);
  CHECK(share_prefixes(batch, 3).prefixes.empty());
  CHECK(share_prefixes(batch, 2).prefixes.size() == 3);
  CHECK(share_prefixes({}).prefixes.empty());
}

// Rows that are saved at best, by trying every way to part the examples into groups.
std::size_t best_saving(const std::vector<std::vector<TokenId>>& prompts, std::vector<std::vector<std::size_t>>& groups,
                        std::size_t next) {
  if (next == prompts.size()) {
    std::size_t saved = 0;
    for (const auto& group : groups) {
      std::size_t common = prompts[group[0]].size();
      for (const std::size_t i : group) {
        const auto [end, other] = std::ranges::mismatch(prompts[group[0]], prompts[i]);
        common = std::min(common, static_cast<std::size_t>(end - prompts[group[0]].begin()));
      }
      saved += (group.size() - 1) * common;
    }
    return saved;
  }
  std::size_t best = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g].push_back(next);
    best = std::max(best, best_saving(prompts, groups, next + 1));
    groups[g].pop_back();
  }
  groups.push_back({next});
  best = std::max(best, best_saving(prompts, groups, next + 1));
  groups.pop_back();
  return best;
}

TEST_CASE("shared prefixes: random batches save as much as the best of all partitions, and lose no token", "[data]") {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    PackedBatch batch;
    std::vector<std::vector<TokenId>> prompts;
    for (std::size_t example = 0; example < 1 + random() % 7; ++example) {
      std::vector<TokenId> tokens;
      for (std::size_t i = 0; i < 2 + random() % 6; ++i) tokens.push_back(static_cast<TokenId>(random() % 2));
      const std::size_t prompt = 1 + random() % (tokens.size() - 1);
      prompts.emplace_back(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(prompt) - 1);
      append(batch, std::move(tokens), prompt);
    }
    INFO("round " << round << ", " << prompts.size() << " examples");
    const SharedBatch shared = share_prefixes(batch, 1);
    std::vector<std::vector<std::size_t>> groups;
    REQUIRE(static_cast<std::size_t>(batch.num_tokens() - shared.rows.num_tokens()) == best_saving(prompts, groups, 0));
    if (shared.row_of_token.empty()) continue;
    std::int64_t num_labels = 0;
    for (std::size_t t = 0; t < batch.input_ids.size(); ++t) {
      const auto row = static_cast<std::size_t>(shared.row_of_token[t]);
      REQUIRE(shared.rows.input_ids[row] == batch.input_ids[t]);
      REQUIRE(shared.rows.position_ids[row] == batch.position_ids[t]);
      REQUIRE(shared.rows.labels[row] == batch.labels[t]);
      num_labels += batch.labels[t] != kIgnoreIndex;
    }
    REQUIRE(num_labels == shared.rows.num_targets);
  }
}

}  // namespace
}  // namespace dagmoe
