// Letters: T tokens of a pass, R rows whose logits are needed, V vocabulary.
#include "eval/generation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <list>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "eval/row_allocator.h"
#include "eval/sampling.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

// A shared beginning shorter than this is not worth its own pass.
constexpr std::int64_t kMinHeader = 32;
// A prompt is cut to fill up a pass only if the piece is worth it.
constexpr std::int64_t kMinPiece = 128;

struct Limits {
  std::int64_t prompt = 0, new_tokens = 0;
};

Limits checked_limits(const GenerationTask& task, std::int64_t max_length) {
  const auto num_prompt = static_cast<std::int64_t>(task.prompt.size());
  if (num_prompt == 0) throw InputError("the prompt has no tokens");
  if (num_prompt >= max_length) {
    throw InputError(str("the prompt has ", with_commas(num_prompt), " tokens, which leaves no room in the model's ",
                         with_commas(max_length)));
  }
  return {num_prompt, std::min(task.request.max_new_tokens, max_length - num_prompt)};
}

// Tokens with which all prompts begin; of every prompt at least one is left.
std::int64_t common_header(std::span<const GenerationTask> tasks) {
  if (tasks.size() < 2) return 0;
  const std::vector<TokenId>& first = tasks.front().prompt;
  std::size_t size = first.size();
  for (const GenerationTask& task : tasks) {
    const auto differs = std::mismatch(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(size),
                                       task.prompt.begin(), task.prompt.end());
    size = std::min<std::size_t>(static_cast<std::size_t>(differs.first - first.begin()), task.prompt.size() - 1);
  }
  const auto header = static_cast<std::int64_t>(size);
  return header >= kMinHeader ? header : 0;
}

/// An answer under way: its rows of the cache, behind those of the header.
struct Answer {
  std::size_t task = 0;
  std::int64_t first_row = 0, num_rows = 0;  // its own, without the header
  std::int64_t num_filled = 0;
  std::int64_t num_new = 0, max_new = 0;
  TokenId last = 0;
  std::optional<TokenSampler> sampler = {};
};

class BatchGenerator {
 public:
  BatchGenerator(const Decoder& model, std::span<const GenerationTask> tasks, const std::vector<TokenId>& end_ids,
                 const GenerationLimits& limits, const GenerationHooks& hooks, ScoringWork* work)
      : model_(model),
        tasks_(tasks),
        end_ids_(end_ids),
        max_batch_tokens_(std::max<std::int64_t>(1, limits.max_batch_tokens)),
        hooks_(hooks),
        work_(work) {
    std::int64_t most_rows = 0, all_rows = 0;
    for (const GenerationTask& task : tasks) {
      limits_.push_back(checked_limits(task, model.config.max_position_embeddings));
      most_rows = std::max(most_rows, limits_.back().prompt + limits_.back().new_tokens);
      all_rows += limits_.back().prompt + limits_.back().new_tokens;
    }
    header_ = common_header(tasks);
    const std::int64_t capacity = std::max(most_rows, std::min(all_rows, limits.max_cached_tokens));
    cache_ = model.make_cache(capacity);
    rows_.emplace(header_, capacity);
  }

  void run() {
    compute_header();
    while (next_task_ < tasks_.size() || !answers_.empty()) {
      Pass pass;
      add_next_tokens(pass);
      continue_prompts(pass);
      admit(pass);
      if (pass.ids.empty()) continue;  // only tasks that want nothing were left
      compute(pass);
    }
  }

 private:
  /// Where the logits of one wanted row go.
  using Wanted = std::vector<std::list<Answer>::iterator>;
  struct Pass {
    std::vector<std::int64_t> ids, positions;
    ContextInput input;
    Wanted wanted;
  };

  // Adds tokens of one answer (or, without one, of the header) that begin at `position` of its sequence.
  void add_segment(Pass& pass, std::span<const TokenId> tokens, std::int64_t position, std::int64_t cache_begin,
                   std::vector<ContextSpan> context) const {
    const auto begin = static_cast<std::int64_t>(pass.ids.size()), count = static_cast<std::int64_t>(tokens.size());
    for (std::int64_t i = 0; i < count; ++i) {
      pass.ids.push_back(tokens[static_cast<std::size_t>(i)]);
      pass.positions.push_back(position + i);
    }
    pass.input.segments.push_back({begin, count, std::move(context)});
    pass.input.kept.push_back({begin, count, cache_begin});
  }

  void add_tokens(Pass& pass, std::list<Answer>::iterator answer, std::span<const TokenId> tokens, bool is_wanted) {
    std::vector<ContextSpan> context;
    if (header_ > 0) context.push_back({true, 0, header_});
    if (answer->num_filled > 0) context.push_back({true, answer->first_row, answer->num_filled});
    add_segment(pass, tokens, header_ + answer->num_filled, answer->first_row + answer->num_filled, std::move(context));
    answer->num_filled += static_cast<std::int64_t>(tokens.size());
    if (!is_wanted) return;
    pass.input.rows.push_back(static_cast<std::int64_t>(pass.ids.size()) - 1);
    pass.wanted.push_back(answer);
  }

  void compute_header() {
    const std::span<const TokenId> header(tasks_.empty() ? nullptr : tasks_.front().prompt.data(),
                                          static_cast<std::size_t>(header_));
    for (std::int64_t begin = 0; begin < header_; begin += max_batch_tokens_) {
      const std::int64_t count = std::min(max_batch_tokens_, header_ - begin);
      Pass pass;
      std::vector<ContextSpan> context;
      if (begin > 0) context.push_back({true, 0, begin});
      add_segment(pass, header.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)), begin, begin,
                  std::move(context));
      compute(pass);
    }
  }

  std::int64_t prompt_left(const Answer& answer) const {
    return limits_[answer.task].prompt - header_ - answer.num_filled;
  }

  void add_next_tokens(Pass& pass) {
    for (auto answer = answers_.begin(); answer != answers_.end(); ++answer) {
      if (answer->num_new > 0) add_tokens(pass, answer, {&answer->last, 1}, /*is_wanted=*/true);
    }
  }

  // As much of the prompt as the pass still takes; nothing if that is not worth it.
  void add_prompt(Pass& pass, std::list<Answer>::iterator answer) {
    const std::int64_t room = max_batch_tokens_ - static_cast<std::int64_t>(pass.ids.size());
    const std::int64_t left = prompt_left(*answer), count = std::min(left, room);
    if (count < left && count < std::min(kMinPiece, max_batch_tokens_ / 2)) return;
    const std::span<const TokenId> prompt = tasks_[answer->task].prompt;
    const auto begin = static_cast<std::size_t>(header_ + answer->num_filled);
    add_tokens(pass, answer, prompt.subspan(begin, static_cast<std::size_t>(std::max<std::int64_t>(1, count))),
               count >= left);
  }

  void continue_prompts(Pass& pass) {
    for (auto answer = answers_.begin(); answer != answers_.end(); ++answer) {
      if (answer->num_new == 0) add_prompt(pass, answer);
    }
  }

  void admit(Pass& pass) {
    while (next_task_ < tasks_.size() &&
           (pass.ids.empty() || static_cast<std::int64_t>(pass.ids.size()) + kMinPiece <= max_batch_tokens_)) {
      const Limits& limit = limits_[next_task_];
      if (limit.new_tokens <= 0) {
        finish(next_task_++);
        continue;
      }
      const std::int64_t num_rows = limit.prompt - header_ + limit.new_tokens;
      const auto first_row = rows_->allocate(num_rows);
      if (!first_row) return;
      const GenerateRequest& request = tasks_[next_task_].request;
      answers_.push_back(
          {.task = next_task_++, .first_row = *first_row, .num_rows = num_rows, .max_new = limit.new_tokens});
      if (request.temperature > 0.0) answers_.back().sampler.emplace(request);
      add_prompt(pass, std::prev(answers_.end()));
    }
  }

  void compute(Pass& pass) {
    const at::Device device = model_.embed_tokens_VD.device();
    pass.input.input_ids_T = at::tensor(pass.ids, at::kLong).to(device);
    pass.input.position_ids_T = at::tensor(pass.positions, at::kLong).to(device);
    const at::Tensor hidden_RD = model_.forward_in_context(pass.input, cache_);
    if (work_ != nullptr) {
      work_->tokens += static_cast<std::int64_t>(pass.ids.size());
      work_->rows += hidden_RD.size(0);
    }
    if (pass.wanted.empty()) return;
    const at::Tensor logits_RV = model_.logits(hidden_RD).to(at::kCPU, at::kFloat).contiguous();
    const RowSummary summary = summarize_logits(logits_RV);
    const auto V = static_cast<std::size_t>(logits_RV.size(1));
    for (std::size_t r = 0; r < pass.wanted.size(); ++r) {
      Answer& answer = *pass.wanted[r];
      if (!std::isfinite(summary.log_sum_exp[r]))
        throw NumericsError(str("token ", answer.num_new, " after the prompt: a logit is not finite"));
      const std::span<const float> logits_V(logits_RV.const_data_ptr<float>() + r * V, V);
      take(pass.wanted[r], answer.sampler ? answer.sampler->next(logits_V) : static_cast<TokenId>(summary.argmax[r]));
    }
  }

  void take(std::list<Answer>::iterator answer, TokenId id) {
    bool is_finished = std::find(end_ids_.begin(), end_ids_.end(), id) != end_ids_.end();
    if (!is_finished) {
      answer->last = id;
      ++answer->num_new;
      const bool goes_on = !hooks_.on_token || hooks_.on_token(answer->task, id);
      is_finished = !goes_on || answer->num_new >= answer->max_new;
    }
    if (!is_finished) return;
    rows_->release(answer->first_row, answer->num_rows);
    finish(answer->task);
    answers_.erase(answer);
  }

  void finish(std::size_t task) const {
    if (hooks_.on_finished) hooks_.on_finished(task);
  }

  const Decoder& model_;
  std::span<const GenerationTask> tasks_;
  const std::vector<TokenId>& end_ids_;
  std::int64_t max_batch_tokens_, header_ = 0;
  const GenerationHooks& hooks_;
  ScoringWork* work_;
  std::vector<Limits> limits_;
  KvCache cache_;
  std::optional<RowAllocator> rows_;
  std::list<Answer> answers_;
  std::size_t next_task_ = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void generate_batch(const Decoder& model, std::span<const GenerationTask> tasks, const std::vector<TokenId>& end_ids,
                    const GenerationLimits& limits, const GenerationHooks& hooks, ScoringWork* work) {
  const at::NoGradGuard no_grad;
  BatchGenerator(model, tasks, end_ids, limits, hooks, work).run();
}

GenerationResult generate_tokens(const Decoder& model, const std::vector<TokenId>& prompt,
                                 const GenerateRequest& request, const std::vector<TokenId>& end_ids,
                                 const std::function<bool(TokenId)>& on_token) {
  const auto start = std::chrono::steady_clock::now();
  GenerationResult result;
  const GenerationTask task = {prompt, request};
  const GenerationHooks hooks = {.on_token =
                                     [&](std::size_t, TokenId id) {
                                       if (result.tokens.empty()) result.prefill_seconds = seconds_since(start);
                                       result.tokens.push_back(id);
                                       return !on_token || on_token(id);
                                     },
                                 .on_finished = {}};
  generate_batch(model, {&task, 1}, end_ids, {}, hooks);
  if (result.tokens.empty()) result.prefill_seconds = seconds_since(start);
  result.decode_seconds = seconds_since(start) - result.prefill_seconds;
  return result;
}

std::vector<TokenId> end_ids_of(const Decoder& model, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids;
  for (const std::int64_t id : model.config.eos_token_ids) ids.push_back(static_cast<TokenId>(id));
  if (tokenizer.eos_id() && std::find(ids.begin(), ids.end(), *tokenizer.eos_id()) == ids.end())
    ids.push_back(*tokenizer.eos_id());
  return ids;
}

}  // namespace dagmoe
