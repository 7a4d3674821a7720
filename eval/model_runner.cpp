#include "eval/model_runner.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "eval/generation.h"
#include "eval/preprocess.h"
#include "eval/text_stream.h"
#include "eval/valid_loss.h"

namespace dagmoe {
namespace {

std::optional<TokenId> prefix_token(const Tokenizer& tokenizer) {
  return tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
}

// With the tokenizer's BOS and EOS, unless the text itself begins with it (contracts.md 4.1 rule 4).
std::vector<TokenId> encode_default(const Tokenizer& tokenizer, std::string_view text) {
  bool has_prefix = false;
  if (const auto prefix = prefix_token(tokenizer))
    has_prefix = text.starts_with(tokenizer.decode({&*prefix, 1}, /*keep_special=*/true));
  return tokenizer.encode(
      text, {.add_bos = tokenizer.adds_bos() && !has_prefix, .add_eos = tokenizer.adds_eos() && !has_prefix});
}

EncodedRequest encode_without_context(const Tokenizer& tokenizer, const std::string& continuation) {
  const auto prefix = prefix_token(tokenizer);
  if (!prefix) throw InputError("the context is empty and the tokenizer has neither BOS nor EOS to stand for it");
  EncodedRequest encoded;
  encoded.context = {*prefix};
  encoded.continuation = tokenizer.encode(continuation);
  // A continuation that brings the prefix token itself gives it to the context.
  if (!encoded.continuation.empty() && encoded.continuation.front() == *prefix)
    encoded.continuation.erase(encoded.continuation.begin());
  return encoded;
}

EncodedRequest encode_pair(const Tokenizer& tokenizer, const LogLikelihoodRequest& request) {
  const std::size_t num_kept = request.context.size() - trailing_space_bytes(request.context);
  std::vector<TokenId> whole = encode_default(tokenizer, request.context + request.continuation);
  EncodedRequest encoded;
  encoded.context = encode_default(tokenizer, std::string_view(request.context).substr(0, num_kept));
  // Split by count alone: lm-evaluation-harness does not ask whether the context's ids begin the whole's.
  const std::size_t border = std::min(encoded.context.size(), whole.size());
  encoded.merged_boundary = !std::equal(encoded.context.begin(), encoded.context.end(), whole.begin(),
                                        whole.begin() + static_cast<std::ptrdiff_t>(border));
  encoded.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(border), whole.end());
  return encoded;
}

ScoringSequence window_sequence(const std::vector<TokenId>& ids, const RollingWindow& window, TokenId prefix) {
  const auto id_before = [&](std::size_t i) { return i == 0 ? prefix : ids[i - 1]; };
  ScoringSequence sequence;
  for (std::size_t i = window.context_begin; i < window.end; ++i) {
    sequence.input.push_back(id_before(i));
    if (i >= window.begin) sequence.targets.push_back({static_cast<std::int64_t>(i - window.context_begin), ids[i]});
  }
  return sequence;
}

std::int64_t length_limit(const RunnerOptions& options, const Decoder& model) {
  return options.max_length > 0 ? options.max_length : model.config.max_position_embeddings;
}

}  // namespace

EncodedRequest encode_request(const Tokenizer& tokenizer, const LogLikelihoodRequest& request,
                              std::int64_t max_length) {
  EncodedRequest encoded = request.context.empty() ? encode_without_context(tokenizer, request.continuation)
                                                   : encode_pair(tokenizer, request);
  const auto limit = static_cast<std::size_t>(max_length);
  if (encoded.context.empty()) throw InputError("the context has no tokens; is it white space only?");
  if (encoded.continuation.empty()) throw InputError("the continuation has no tokens");
  if (encoded.continuation.size() > limit) {
    throw InputError(
        str("the continuation has ", encoded.continuation.size(), " tokens, more than the model's maximum of ", limit));
  }
  const std::size_t kept = std::min(encoded.context.size(), limit + 1 - encoded.continuation.size());
  encoded.truncated = kept < encoded.context.size();
  encoded.context.erase(encoded.context.begin(), encoded.context.end() - static_cast<std::ptrdiff_t>(kept));
  return encoded;
}

std::vector<RollingWindow> rolling_windows(std::size_t num_tokens, std::size_t max_length) {
  std::vector<RollingWindow> windows;
  for (std::size_t begin = 0; begin < num_tokens; begin += max_length) {
    const std::size_t end = std::min(begin + max_length, num_tokens);
    windows.push_back({begin, end, begin == 0 ? 0 : std::min(begin, end - max_length)});
  }
  return windows;
}

ModelRunner::ModelRunner(const Decoder& model, const Tokenizer& tokenizer, RunnerOptions options)
    : model_(model), tokenizer_(tokenizer), options_(options) {}

void ModelRunner::add_counts(std::span<const ScoringSequence> sequences, const ScoringWork& work,
                             std::chrono::steady_clock::time_point start) {
  for (const ScoringSequence& sequence : sequences)
    counts_.tokens_requested += static_cast<std::int64_t>(sequence.input.size());
  counts_.tokens_computed += work.tokens;
  counts_.rows_scored += work.rows;
  counts_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

namespace {

// The input and what it is asked; the input's last id predicts the continuation's last.
ScoringSequence scoring_sequence(const EncodedRequest& encoded) {
  ScoringSequence sequence = {encoded.context, {}};
  sequence.input.insert(sequence.input.end(), encoded.continuation.begin(), encoded.continuation.end() - 1);
  auto position = static_cast<std::int64_t>(encoded.context.size()) - 1;
  for (const TokenId token : encoded.continuation) sequence.targets.push_back({position++, token});
  return sequence;
}

void add_scores(LogLikelihood& result, const std::vector<TokenScore>& scores) {
  double sum = 0.0;
  for (const TokenScore& score : scores) {
    sum += score.log_prob;
    result.is_greedy = result.is_greedy && score.is_greedy;
  }
  result.log_prob += sum;
}

// Ids of one call of score_tokens: enough for all that share a beginning, little beside the model.
constexpr std::size_t kMaxIdsAtOnce = 1 << 22;

}  // namespace

void ModelRunner::score(std::span<const ScoringSequence> sequences,
                        const std::function<void(std::size_t, const std::vector<TokenScore>&)>& on_sequence) {
  const auto start = std::chrono::steady_clock::now();
  ScoringWork work;
  score_tokens(model_, sequences, options_.max_batch_tokens, on_sequence, &work);
  add_counts(sequences, work, start);
}

std::vector<LogLikelihood> ModelRunner::log_likelihood(std::span<const LogLikelihoodRequest> requests,
                                                       const ResultHook<LogLikelihood>& on_result) {
  std::vector<LogLikelihood> results(requests.size());
  const std::int64_t max_length = length_limit(options_, model_);
  for (std::size_t first = 0; first < requests.size();) {
    std::vector<ScoringSequence> sequences;
    std::size_t num_ids = 0;
    for (std::size_t r = first; r < requests.size() && num_ids < kMaxIdsAtOnce; ++r) {
      EncodedRequest encoded;
      try {
        encoded = encode_request(tokenizer_, requests[r], max_length);
      } catch (const InputError& error) {
        throw RequestError(r, error.what());
      }
      sequences.push_back(scoring_sequence(encoded));
      num_ids += sequences.back().input.size();
      results[r].is_greedy = true;
      results[r].num_tokens = static_cast<std::int64_t>(encoded.continuation.size());
      results[r].merged_boundary = encoded.merged_boundary;
      results[r].truncated = encoded.truncated;
    }
    score(sequences, [&](std::size_t s, const std::vector<TokenScore>& scores) {
      add_scores(results[first + s], scores);
      if (on_result) on_result(first + s, results[first + s]);
    });
    first += sequences.size();
  }
  return results;
}

std::vector<LogLikelihood> ModelRunner::rolling_log_likelihood(std::span<const std::string> texts,
                                                               const ResultHook<LogLikelihood>& on_result) {
  const auto prefix = prefix_token(tokenizer_);
  if (!prefix) throw InputError("the tokenizer has neither BOS nor EOS to stand before a text");
  const auto max_length = static_cast<std::size_t>(length_limit(options_, model_));
  std::vector<LogLikelihood> results(texts.size());
  for (std::size_t t = 0; t < texts.size(); ++t) {
    const std::vector<TokenId> ids = encode_default(tokenizer_, texts[t]);
    std::vector<ScoringSequence> windows;
    for (const RollingWindow& window : rolling_windows(ids.size(), max_length))
      windows.push_back(window_sequence(ids, window, *prefix));
    std::vector<std::vector<TokenScore>> scores(windows.size());
    score(windows, [&](std::size_t w, const std::vector<TokenScore>& window_scores) { scores[w] = window_scores; });
    results[t].is_greedy = true;
    results[t].num_tokens = static_cast<std::int64_t>(ids.size());
    for (const auto& window_scores : scores) add_scores(results[t], window_scores);  // window by window, in order
    if (on_result) on_result(t, results[t]);
  }
  return results;
}

std::vector<SampleLoss> ModelRunner::sample_loss(std::span<const SampleLossRequest> requests,
                                                 const ResultHook<SampleLoss>& on_result) {
  // One more id than the model's input: the last one is only predicted.
  const std::int64_t max_length = length_limit(options_, model_) + 1;
  std::vector<Example> examples;
  for (const SampleLossRequest& request : requests) {
    const std::int64_t limit = request.max_tokens > 0 ? std::min(request.max_tokens, max_length) : max_length;
    examples.push_back(make_example(tokenizer_, request.pieces, limit));
    counts_.tokens_requested += std::max<std::int64_t>(0, static_cast<std::int64_t>(examples.back().tokens.size()) - 1);
  }
  const auto start = std::chrono::steady_clock::now();
  ScoringWork work;
  std::vector<SampleLoss> losses = example_losses(model_, examples, options_.max_batch_tokens, on_result, &work);
  add_counts({}, work, start);
  return losses;
}

std::vector<std::string> ModelRunner::generate(std::span<const GenerateRequest> requests,
                                               const ResultHook<std::string>& on_result) {
  std::vector<GenerationTask> tasks;
  std::vector<TextStream> streams;
  std::vector<std::string> texts(requests.size());
  for (const GenerateRequest& request : requests) {
    std::vector<TokenId> prompt = encode_default(tokenizer_, request.prompt);
    const std::int64_t room = std::max<std::int64_t>(1, length_limit(options_, model_) - request.max_new_tokens);
    const auto kept = static_cast<std::ptrdiff_t>(std::min<std::size_t>(prompt.size(), static_cast<std::size_t>(room)));
    prompt.erase(prompt.begin(), prompt.end() - kept);
    if (prompt.empty()) throw RequestError(tasks.size(), "the prompt has no tokens");
    counts_.tokens_requested += kept;
    tasks.push_back({std::move(prompt), request});
    streams.emplace_back(tokenizer_, request.stop);
  }
  const GenerationHooks hooks = {.on_token =
                                     [&](std::size_t t, TokenId id) {
                                       ++counts_.tokens_requested;
                                       streams[t].push(id);
                                       return !streams[t].stopped();
                                     },
                                 .on_finished =
                                     [&](std::size_t t) {
                                       streams[t].finish();
                                       texts[t] = streams[t].text();
                                       if (on_result) on_result(t, texts[t]);
                                     }};
  const auto start = std::chrono::steady_clock::now();
  ScoringWork work;
  generate_batch(model_, tasks, end_ids_of(model_, tokenizer_),
                 {.max_batch_tokens = options_.max_batch_tokens, .max_cached_tokens = options_.max_cached_tokens},
                 hooks, &work);
  add_counts({}, work, start);
  return texts;
}

}  // namespace dagmoe
