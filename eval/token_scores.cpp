// Letters: T tokens of a pass, D hidden_size, R rows whose logits are needed, V vocabulary.
#include "eval/token_scores.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "eval/prefix_tree.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

// At 49,152 tokens of vocabulary, 50 MB of logits in float.
constexpr std::int64_t kRowsPerChunk = 256;
// A span of its own costs attention about as much as a few tokens cost the rest.
constexpr std::int64_t kMinShared = 4;

// One target: which position answers it, and whose it is.
struct Cell {
  std::int64_t position = 0;  // in its sequence; later: among the rows of the pass
  TokenId token = 0;
  TokenScore* score = nullptr;
};

at::Tensor ids_tensor(const std::vector<std::int64_t>& ids, at::Device device) {
  return at::tensor(ids, at::kLong).to(device);
}

// Answers the cells of rows [begin, begin + hidden_RD.size(0)).
void score_rows(const Decoder& model, const at::Tensor& hidden_RD, std::int64_t begin, std::span<const Cell> cells) {
  const at::Tensor logits_RV = model.logits(hidden_RD);
  const RowSummary summary = summarize_logits(logits_RV);
  std::vector<std::int64_t> rows, tokens;
  for (const Cell& cell : cells) {
    rows.push_back(cell.position - begin);
    tokens.push_back(cell.token);
  }
  const at::Tensor rows_N = ids_tensor(rows, hidden_RD.device()), tokens_N = ids_tensor(tokens, hidden_RD.device());
  const at::Tensor logits_N = at::index(logits_RV, {rows_N, tokens_N}).to(at::kCPU, at::kDouble);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const auto row = static_cast<std::size_t>(rows[i]);
    const double log_prob = logits_N.const_data_ptr<double>()[i] - summary.log_sum_exp[row];
    if (!std::isfinite(log_prob)) throw NumericsError(str("the model's log-probability of a token is ", log_prob));
    *cells[i].score = {log_prob, summary.argmax[row] == cells[i].token};
  }
}

/// The sequences as a tree, and for each node what is asked inside it.
class ScoringPlan {
 public:
  ScoringPlan(std::span<const ScoringSequence> sequences, std::int64_t max_batch_tokens,
              std::vector<std::vector<TokenScore>>& scores)
      : sequences_(sequences) {
    std::vector<std::span<const TokenId>> inputs;
    for (const ScoringSequence& sequence : sequences) inputs.emplace_back(sequence.input);
    // Half a pass at most, so that passes fill up well.
    tree_ = build_prefix_tree(inputs, kMinShared, std::max<std::int64_t>(1, max_batch_tokens / 2));
    passes_ = plan_passes(tree_, max_batch_tokens);
    cells_of_node_.resize(tree_.nodes.size());
    for (std::size_t s = 0; s < sequences.size(); ++s) place_targets(s, scores[s]);
    order_.resize(sequences.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
      return tree_.leaf_of_sequence[a] + 1 < tree_.leaf_of_sequence[b] + 1;  // kRoot, which is no node, comes first
    });
  }

  const std::vector<PrefixPass>& passes() const { return passes_; }

  /// Rows that the cache needs.
  std::int64_t cache_capacity() const {
    std::int64_t capacity = 0;
    for (const PrefixPass& pass : passes_) {
      for (const std::size_t n : pass.kept) capacity = std::max(capacity, tree_.nodes[n].end);
    }
    return capacity;
  }

  /// The pass as the model takes it; its cells, with positions that count the wanted rows, go to `cells`.
  ContextInput input_of(const PrefixPass& pass, at::Device device, std::vector<Cell>& cells) {
    ContextInput input;
    std::vector<std::int64_t> ids, positions;
    row_of_node_.resize(tree_.nodes.size());
    for (std::size_t n = pass.first; n < pass.last; ++n) {
      const PrefixNode& node = tree_.nodes[n];
      const auto row = static_cast<std::int64_t>(ids.size());
      row_of_node_[n] = row;
      for (std::int64_t p = node.begin; p < node.end; ++p) {
        ids.push_back(sequences_[node.sequence].input[static_cast<std::size_t>(p)]);
        positions.push_back(p);
      }
      input.segments.push_back({.begin = row, .count = node.end - node.begin, .context = context_of(n, pass.first)});
      add_cells(n, row - node.begin, input.rows, cells);
    }
    for (const std::size_t n : pass.kept) {
      const PrefixNode& node = tree_.nodes[n];
      input.kept.push_back({row_of_node_[n], node.end - node.begin, node.begin});
    }
    input.input_ids_T = ids_tensor(ids, device);
    input.position_ids_T = ids_tensor(positions, device);
    return input;
  }

  /// Calls f(sequence) for every sequence whose last token lies before node `last` and that was not named before.
  template <class F>
  void for_each_finished(std::size_t last, F f) {
    for (; next_ < order_.size() && tree_.leaf_of_sequence[order_[next_]] + 1 <= last; ++next_) f(order_[next_]);
  }

 private:
  void place_targets(std::size_t s, std::vector<TokenScore>& scores) {
    const std::vector<TokenTarget>& targets = sequences_[s].targets;
    scores.resize(targets.size());
    for (std::size_t i = 0; i < targets.size(); ++i) {
      std::size_t n = tree_.leaf_of_sequence[s];
      while (targets[i].position < tree_.nodes[n].begin) n = tree_.nodes[n].parent;
      cells_of_node_[n].push_back({targets[i].position, targets[i].token, &scores[i]});
    }
  }

  // Where the node's ancestors lie: in this pass, or in the cache at their positions.
  std::vector<ContextSpan> context_of(std::size_t n, std::size_t first_of_pass) const {
    std::vector<ContextSpan> spans;  // from the last one to the first
    for (std::size_t a = tree_.nodes[n].parent; a != PrefixNode::kRoot; a = tree_.nodes[a].parent) {
      const PrefixNode& ancestor = tree_.nodes[a];
      if (a < first_of_pass) {
        spans.push_back({.is_cached = true, .begin = 0, .count = ancestor.end});
        break;
      }
      const ContextSpan span = {false, row_of_node_[a], ancestor.end - ancestor.begin};
      if (!spans.empty() && span.begin + span.count == spans.back().begin) {
        spans.back() = {false, span.begin, span.count + spans.back().count};
      } else {
        spans.push_back(span);
      }
    }
    std::reverse(spans.begin(), spans.end());
    return spans;
  }

  void add_cells(std::size_t n, std::int64_t shift, std::vector<std::int64_t>& rows, std::vector<Cell>& cells) {
    std::vector<Cell>& own = cells_of_node_[n];
    std::stable_sort(own.begin(), own.end(), [](const Cell& a, const Cell& b) { return a.position < b.position; });
    for (const Cell& cell : own) {
      const std::int64_t row = cell.position + shift;
      if (rows.empty() || rows.back() != row) rows.push_back(row);
      cells.push_back({static_cast<std::int64_t>(rows.size()) - 1, cell.token, cell.score});
    }
  }

  std::span<const ScoringSequence> sequences_;
  PrefixTree tree_;
  std::vector<PrefixPass> passes_;
  std::vector<std::vector<Cell>> cells_of_node_;
  std::vector<std::int64_t> row_of_node_;
  std::vector<std::size_t> order_;  // sequences by their leaves
  std::size_t next_ = 0;
};

void score_pass(const Decoder& model, const at::Tensor& hidden_RD, std::span<const Cell> cells) {
  for (std::int64_t begin = 0; begin < hidden_RD.size(0); begin += kRowsPerChunk) {
    const std::int64_t end = std::min(begin + kRowsPerChunk, hidden_RD.size(0));
    const auto last = std::find_if(cells.begin(), cells.end(), [end](const Cell& c) { return c.position >= end; });
    score_rows(model, hidden_RD.narrow(0, begin, end - begin), begin, {cells.begin(), last});
    cells = {last, cells.end()};
  }
}

}  // namespace

std::vector<std::vector<TokenScore>> score_tokens(
    const Decoder& model, std::span<const ScoringSequence> sequences, std::int64_t max_batch_tokens,
    const std::function<void(std::size_t, const std::vector<TokenScore>&)>& on_sequence, ScoringWork* work) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<TokenScore>> scores(sequences.size());
  ScoringPlan plan(sequences, max_batch_tokens, scores);
  KvCache cache = model.make_cache(plan.cache_capacity());
  const auto report = [&](std::size_t s) {
    if (on_sequence) on_sequence(s, scores[s]);
  };
  plan.for_each_finished(0, report);  // empty ones
  for (const PrefixPass& pass : plan.passes()) {
    std::vector<Cell> cells;
    const ContextInput input = plan.input_of(pass, model.embed_tokens_VD.device(), cells);
    const at::Tensor hidden_RD = model.forward_in_context(input, cache);
    score_pass(model, hidden_RD, cells);
    if (work != nullptr) {
      work->tokens += input.input_ids_T.size(0);
      work->rows += hidden_RD.size(0);
    }
    plan.for_each_finished(pass.last, report);
  }
  return scores;
}

}  // namespace dagmoe
