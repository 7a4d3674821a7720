// Letters: T tokens of a batch, D hidden_size, R rows whose logits are needed, V vocabulary, N targets.
#include "eval/token_scores.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// At 49,152 tokens of vocabulary, 50 MB of logits in float.
constexpr std::int64_t kRowsPerChunk = 256;

// One target: which row of the gathered hidden states answers it, and whose it is.
struct Cell {
  std::int64_t row = 0;
  TokenId token = 0;
  TokenScore* score = nullptr;
};

struct Batch {
  std::vector<std::int64_t> input_ids, position_ids, offsets = {0}, rows;
  std::vector<Cell> cells;  // by row
};

void append_sequence(Batch& batch, const ScoringSequence& sequence, std::vector<TokenScore>& scores) {
  const std::int64_t begin = batch.offsets.back();
  for (std::size_t i = 0; i < sequence.input.size(); ++i) {
    batch.input_ids.push_back(sequence.input[i]);
    batch.position_ids.push_back(static_cast<std::int64_t>(i));
  }
  batch.offsets.push_back(static_cast<std::int64_t>(batch.input_ids.size()));

  std::vector<std::size_t> order(sequence.targets.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return sequence.targets[a].position < sequence.targets[b].position;
  });
  for (const std::size_t i : order) {
    const std::int64_t row = begin + sequence.targets[i].position;
    if (batch.rows.empty() || batch.rows.back() != row) batch.rows.push_back(row);
    batch.cells.push_back({static_cast<std::int64_t>(batch.rows.size()) - 1, sequence.targets[i].token, &scores[i]});
  }
}

at::Tensor ids_tensor(const std::vector<std::int64_t>& ids, at::Device device) {
  return at::tensor(ids, at::kLong).to(device);
}

// Answers the cells of rows [begin, begin + hidden_RD.size(0)).
void score_rows(const Decoder& model, const at::Tensor& hidden_RD, std::int64_t begin, std::span<Cell> cells) {
  const at::Tensor logits_RV = model.logits(hidden_RD);
  const bool is_double = logits_RV.scalar_type() == at::kDouble;
  const at::Tensor log_probs_RV = at::log_softmax(logits_RV, -1, is_double ? at::kDouble : at::kFloat);
  std::vector<std::int64_t> rows, tokens;
  for (const Cell& cell : cells) {
    rows.push_back(cell.row - begin);
    tokens.push_back(cell.token);
  }
  const at::Tensor rows_N = ids_tensor(rows, hidden_RD.device()), tokens_N = ids_tensor(tokens, hidden_RD.device());
  const at::Tensor log_probs_N = at::index(log_probs_RV, {rows_N, tokens_N}).to(at::kCPU, at::kDouble);
  const at::Tensor greedy_N = log_probs_RV.argmax(-1).index_select(0, rows_N).eq(tokens_N).to(at::kCPU);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const double log_prob = log_probs_N.const_data_ptr<double>()[i];
    if (!std::isfinite(log_prob)) throw NumericsError(str("the model's log-probability of a token is ", log_prob));
    *cells[i].score = {log_prob, greedy_N.const_data_ptr<bool>()[i]};
  }
}

void score_batch(const Decoder& model, Batch& batch) {
  if (batch.cells.empty()) return;
  const at::Device device = model.embed_tokens_VD.device();
  const ModelInput input{ids_tensor(batch.input_ids, device), ids_tensor(batch.position_ids, device), batch.offsets};
  const at::Tensor hidden_TD = model.forward(input).hidden_TD;
  const at::Tensor hidden_RD = hidden_TD.index_select(0, ids_tensor(batch.rows, device));
  auto cell = batch.cells.begin();
  for (std::int64_t begin = 0; begin < hidden_RD.size(0); begin += kRowsPerChunk) {
    const std::int64_t end = std::min(begin + kRowsPerChunk, hidden_RD.size(0));
    const auto last = std::find_if(cell, batch.cells.end(), [end](const Cell& c) { return c.row >= end; });
    score_rows(model, hidden_RD.narrow(0, begin, end - begin), begin, {cell, last});
    cell = last;
  }
}

}  // namespace

std::vector<std::vector<TokenScore>> score_tokens(const Decoder& model, std::span<const ScoringSequence> sequences,
                                                  std::int64_t max_batch_tokens,
                                                  const std::function<void(std::int64_t)>& on_batch) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<TokenScore>> scores(sequences.size());
  std::vector<std::size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Longest first, so that a pass too large for the memory fails at once and estimates of the time left err on the safe
  // side.
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return sequences[a].input.size() > sequences[b].input.size(); });

  for (std::size_t next = 0; next < order.size();) {
    Batch batch;
    do {
      const std::size_t s = order[next++];
      scores[s].resize(sequences[s].targets.size());
      append_sequence(batch, sequences[s], scores[s]);
    } while (next < order.size() && batch.input_ids.size() + sequences[order[next]].input.size() <=
                                        static_cast<std::size_t>(max_batch_tokens));
    score_batch(model, batch);
    if (on_batch) on_batch(static_cast<std::int64_t>(next));
  }
  return scores;
}

}  // namespace dagmoe
