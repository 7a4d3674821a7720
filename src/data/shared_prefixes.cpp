#include "data/shared_prefixes.h"

#include <algorithm>
#include <numeric>
#include <span>

namespace dagmoe {
namespace {

// The beginning of an example whose labels do not count, short of its last token, so that something is its own.
std::span<const std::int64_t> prompt_of(const PackedBatch& batch, std::size_t example) {
  const std::int64_t begin = batch.segment_offsets[example], end = batch.segment_offsets[example + 1];
  std::int64_t size = 0;
  while (begin + size + 1 < end && batch.labels[static_cast<std::size_t>(begin + size)] == kIgnoreIndex) ++size;
  return std::span(batch.input_ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size));
}

// Examples that share their first `size` tokens: numbers [begin, end) of the sorted prompts.
struct Group {
  std::size_t begin, end, size;
  std::size_t saved() const { return (end - begin - 1) * size; }
};

/// Finds the groups of sorted prompts, whose common beginnings form a tree: a group either shares what all its members
/// have in common, or its parts do what is best for them.
class Grouping {
 public:
  explicit Grouping(const std::vector<std::span<const std::int64_t>>& prompts) {
    for (std::size_t i = 0; i + 1 < prompts.size(); ++i) {
      const auto [end, other] = std::ranges::mismatch(prompts[i], prompts[i + 1]);
      common_.push_back(static_cast<std::size_t>(end - prompts[i].begin()));
    }
  }

  // Appends the best groups of prompts [begin, end) and returns the rows that they save.
  std::size_t find(std::size_t begin, std::size_t end, std::vector<Group>& groups) const {
    if (end - begin < 2) return 0;
    const auto first = common_.begin() + static_cast<std::ptrdiff_t>(begin),
               last = common_.begin() + static_cast<std::ptrdiff_t>(end) - 1;
    const Group whole = {begin, end, *std::min_element(first, last)};
    const std::size_t before = groups.size();
    std::size_t saved = 0;
    for (std::size_t part = begin; part < end;) {
      std::size_t part_end = part + 1;
      while (part_end < end && common_[part_end - 1] > whole.size) ++part_end;
      saved += find(part, part_end, groups);
      part = part_end;
    }
    if (saved > whole.saved() || whole.saved() == 0) return saved;
    groups.resize(before);
    groups.push_back(whole);
    return whole.saved();
  }

 private:
  std::vector<std::size_t> common_;  // tokens that neighbours share
};

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

// Builds the rows, prefixes at the place of their first example.
class Builder {
 public:
  explicit Builder(const PackedBatch& batch) : batch_(batch) {
    shared_.rows.segment_offsets = {0};
    shared_.rows.num_targets = batch.num_targets;
    shared_.row_of_token.resize(batch.input_ids.size());
  }

  // The segment of the first `size` tokens of an example.
  std::int64_t add_prefix(std::size_t example, std::size_t size) {
    add_rows(token(example, 0), token(example, size), -1);
    return shared_.rows.num_segments() - 1;
  }

  void add_example(std::size_t example, std::size_t prefix_size, std::int64_t prefix) {
    for (std::size_t i = 0; i < prefix_size; ++i) {
      shared_.row_of_token[token(example, i)] =
          shared_.rows.segment_offsets[static_cast<std::size_t>(prefix)] + static_cast<std::int64_t>(i);
    }
    const std::size_t first = token(example, prefix_size),
                      end = static_cast<std::size_t>(batch_.segment_offsets[example + 1]);
    for (std::size_t t = first; t < end; ++t)
      shared_.row_of_token[t] = shared_.rows.num_tokens() + static_cast<std::int64_t>(t - first);
    add_rows(first, end, prefix);
  }

  SharedBatch take() { return std::move(shared_); }

 private:
  std::size_t token(std::size_t example, std::size_t place) const {
    return static_cast<std::size_t>(batch_.segment_offsets[example]) + place;
  }

  void add_rows(std::size_t begin, std::size_t end, std::int64_t prefix) {
    PackedBatch& rows = shared_.rows;
    const auto copy = [&](std::vector<std::int64_t> PackedBatch::*part) {
      const auto from = (batch_.*part).begin();
      (rows.*part)
          .insert((rows.*part).end(), from + static_cast<std::ptrdiff_t>(begin),
                  from + static_cast<std::ptrdiff_t>(end));
    };
    copy(&PackedBatch::input_ids), copy(&PackedBatch::position_ids), copy(&PackedBatch::labels);
    rows.segment_offsets.push_back(rows.num_tokens());
    shared_.prefixes.push_back(prefix);
  }

  const PackedBatch& batch_;
  SharedBatch shared_;
};

}  // namespace

SharedBatch share_prefixes(const PackedBatch& batch, std::int64_t min_saved) {
  const std::size_t num_examples = batch.segment_offsets.empty() ? 0 : batch.segment_offsets.size() - 1;
  std::vector<std::size_t> order(num_examples);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::vector<std::span<const std::int64_t>> prompts;
  for (std::size_t example = 0; example < num_examples; ++example) prompts.push_back(prompt_of(batch, example));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::ranges::lexicographical_compare(prompts[a], prompts[b]);
  });
  std::vector<std::span<const std::int64_t>> sorted;
  for (const std::size_t example : order) sorted.push_back(prompts[example]);
  std::vector<Group> groups;
  if (Grouping(sorted).find(0, num_examples, groups) < static_cast<std::size_t>(std::max<std::int64_t>(min_saved, 1)))
    return {batch, {}, {}};

  std::vector<std::size_t> group_of(num_examples, kNone);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (std::size_t i = groups[g].begin; i < groups[g].end; ++i) group_of[order[i]] = g;
  }
  Builder builder(batch);
  std::vector<std::int64_t> segment_of_group(groups.size(), -1);
  for (std::size_t example = 0; example < num_examples; ++example) {
    const std::size_t g = group_of[example];
    if (g != kNone && segment_of_group[g] < 0) segment_of_group[g] = builder.add_prefix(example, groups[g].size);
    builder.add_example(example, g == kNone ? 0 : groups[g].size, g == kNone ? -1 : segment_of_group[g]);
  }
  return builder.take();
}

}  // namespace dagmoe
