#include "eval/model_runner.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/environment.h"
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
std::vector<TokenId> encode_default(const Tokenizer& tokenizer, std::string_view text, std::optional<bool> add_bos) {
  bool has_prefix = false;
  if (const auto prefix = prefix_token(tokenizer))
    has_prefix = text.starts_with(tokenizer.decode({&*prefix, 1}, /*keep_special=*/true));
  return tokenizer.encode(text, {.add_bos = add_bos.value_or(tokenizer.adds_bos()) && !has_prefix,
                                 .add_eos = tokenizer.adds_eos() && !has_prefix});
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

EncodedRequest encode_pair(const Tokenizer& tokenizer, const LogLikelihoodRequest& request,
                           std::optional<bool> add_bos) {
  const std::size_t num_kept = request.context.size() - trailing_space_bytes(request.context);
  std::vector<TokenId> whole = encode_default(tokenizer, request.context + request.continuation, add_bos);
  EncodedRequest encoded;
  encoded.context = encode_default(tokenizer, std::string_view(request.context).substr(0, num_kept), add_bos);
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

EncodedRequest encode_request(const Tokenizer& tokenizer, const LogLikelihoodRequest& request, std::int64_t max_length,
                              std::optional<bool> add_bos) {
  EncodedRequest encoded = request.context.empty() ? encode_without_context(tokenizer, request.continuation)
                                                   : encode_pair(tokenizer, request, add_bos);
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

RunnerOptions with_budgets(RunnerOptions options, const ModelConfig& config, std::int64_t element_bytes,
                           std::int64_t available_bytes) {
  constexpr std::int64_t kMinBatch = 256, kMaxBatch = 2048, kMinCached = 1024, kMaxCached = 16384;
  // A layer's widest moment: inputs and outputs of its products, experts' rows beside each other, some in float.
  std::int64_t width =
      8 * config.hidden_size + 4 * config.num_attention_heads * query_head_dim(config) + 3 * config.intermediate_size;
  if (config.moe) {
    width += config.moe->num_experts_per_tok * (3 * config.moe->moe_intermediate_size + 4 * config.hidden_size) +
             3 * config.moe->shared_expert_intermediate_size;
  }
  const std::int64_t cached = 2 * config.num_hidden_layers * config.num_key_value_heads * query_head_dim(config);
  const auto found = [&](std::int64_t given, std::int64_t elements, std::int64_t least, std::int64_t most) {
    const std::int64_t bytes = std::max<std::int64_t>(1, elements * element_bytes);
    return given > 0 ? given : std::clamp(available_bytes / 8 / bytes, least, most);
  };
  options.max_batch_tokens = found(options.max_batch_tokens, width, kMinBatch, kMaxBatch);
  options.max_cached_tokens = found(options.max_cached_tokens, cached, kMinCached, kMaxCached);
  return options;
}

ModelRunner::ModelRunner(const Decoder& model, const Tokenizer& tokenizer, RunnerOptions options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(with_budgets(options, model.config, static_cast<std::int64_t>(c10::elementSize(model.compute_dtype)),
                            available_memory_bytes())) {}

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
        encoded = encode_request(tokenizer_, requests[r], max_length, options_.add_bos);
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
  for (std::size_t first = 0; first < texts.size();) {
    std::vector<ScoringSequence> windows;
    std::vector<std::size_t> end_of_text;  // windows, text after text
    std::size_t num_ids = 0, t = first;
    for (; t < texts.size() && num_ids < kMaxIdsAtOnce; ++t) {
      const std::vector<TokenId> ids = encode_default(tokenizer_, texts[t], options_.add_bos);
      for (const RollingWindow& window : rolling_windows(ids.size(), max_length))
        windows.push_back(window_sequence(ids, window, *prefix));
      end_of_text.push_back(windows.size());
      num_ids += ids.size();
      results[t].is_greedy = true;
      results[t].num_tokens = static_cast<std::int64_t>(ids.size());
    }
    score_windows(windows, end_of_text, std::span(results).subspan(first, t - first),
                  [&](std::size_t i, const LogLikelihood& result) {
                    if (on_result) on_result(first + i, result);
                  });
    first = t;
  }
  return results;
}

void ModelRunner::score_windows(std::span<const ScoringSequence> windows, std::span<const std::size_t> end_of_text,
                                std::span<LogLikelihood> results, const ResultHook<LogLikelihood>& on_result) {
  std::vector<std::vector<TokenScore>> scores(windows.size());
  std::vector<std::size_t> num_left(results.size());
  const auto first_of = [&](std::size_t text) { return text == 0 ? 0 : end_of_text[text - 1]; };
  const auto finish = [&](std::size_t text) {
    for (std::size_t w = first_of(text); w < end_of_text[text]; ++w) add_scores(results[text], scores[w]);
    on_result(text, results[text]);
  };
  for (std::size_t text = 0; text < results.size(); ++text) {
    num_left[text] = end_of_text[text] - first_of(text);
    if (num_left[text] == 0) finish(text);
  }
  score(windows, [&](std::size_t w, const std::vector<TokenScore>& window_scores) {
    scores[w] = window_scores;
    const auto text =
        static_cast<std::size_t>(std::upper_bound(end_of_text.begin(), end_of_text.end(), w) - end_of_text.begin());
    if (--num_left[text] == 0) finish(text);
  });
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
    std::vector<TokenId> prompt = encode_default(tokenizer_, request.prompt, options_.add_bos);
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
