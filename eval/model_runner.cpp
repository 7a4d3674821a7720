// Letters: T tokens, V vocabulary.
#include "eval/model_runner.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "eval/preprocess.h"
#include "eval/text_stream.h"
#include "eval/token_scores.h"
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

std::vector<LogLikelihood> ModelRunner::log_likelihood(std::span<const LogLikelihoodRequest> requests,
                                                       const ResultHook<LogLikelihood>& on_result) {
  // Where a request's targets lie: targets [first, first + count) of one sequence.
  struct Place {
    std::size_t sequence = 0, first = 0, count = 0;
  };
  std::vector<LogLikelihood> results(requests.size());
  std::vector<Place> places(requests.size());
  std::vector<ScoringSequence> sequences;
  std::map<std::vector<TokenId>, std::size_t> sequence_of_input;
  const std::int64_t max_length = length_limit(options_, model_);
  for (std::size_t r = 0; r < requests.size(); ++r) {
    EncodedRequest encoded;
    try {
      encoded = encode_request(tokenizer_, requests[r], max_length);
    } catch (const InputError& error) {
      throw RequestError(r, error.what());
    }
    std::vector<TokenId> input = encoded.context;
    input.insert(input.end(), encoded.continuation.begin(), encoded.continuation.end() - 1);
    const auto [found, is_new] = sequence_of_input.try_emplace(input, sequences.size());
    if (is_new) sequences.push_back({std::move(input), {}});
    std::vector<TokenTarget>& targets = sequences[found->second].targets;
    places[r] = {found->second, targets.size(), encoded.continuation.size()};
    // The input's last id predicts the continuation's last.
    auto position = static_cast<std::int64_t>(encoded.context.size()) - 1;
    for (const TokenId token : encoded.continuation) targets.push_back({position++, token});
    results[r].num_tokens = static_cast<std::int64_t>(encoded.continuation.size());
    results[r].merged_boundary = encoded.merged_boundary;
    results[r].truncated = encoded.truncated;
  }

  const auto scores = score_tokens(model_, sequences, options_.max_batch_tokens);
  for (std::size_t r = 0; r < requests.size(); ++r) {
    const std::span<const TokenScore> own =
        std::span(scores[places[r].sequence]).subspan(places[r].first, places[r].count);
    results[r].is_greedy = std::all_of(own.begin(), own.end(), [](const TokenScore& score) { return score.is_greedy; });
    for (const TokenScore& score : own) results[r].log_prob += score.log_prob;
    if (on_result) on_result(r, results[r]);
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
  }
  std::vector<SampleLoss> losses = example_losses(model_, examples, options_.max_batch_tokens);
  for (std::size_t r = 0; on_result && r < losses.size(); ++r) on_result(r, losses[r]);
  return losses;
}

std::vector<LogLikelihood> ModelRunner::rolling_log_likelihood(std::span<const std::string> texts,
                                                               const ResultHook<LogLikelihood>& on_result) {
  const auto prefix = prefix_token(tokenizer_);
  if (!prefix) throw InputError("the tokenizer has neither BOS nor EOS to stand before a text");
  const auto max_length = static_cast<std::size_t>(length_limit(options_, model_));
  std::vector<ScoringSequence> sequences;
  std::vector<std::size_t> text_of_sequence;
  std::vector<LogLikelihood> results(texts.size());
  for (std::size_t t = 0; t < texts.size(); ++t) {
    const std::vector<TokenId> ids = encode_default(tokenizer_, texts[t]);
    for (const RollingWindow& window : rolling_windows(ids.size(), max_length)) {
      sequences.push_back(window_sequence(ids, window, *prefix));
      text_of_sequence.push_back(t);
    }
    results[t].num_tokens = static_cast<std::int64_t>(ids.size());
    results[t].is_greedy = true;
  }
  const auto scores = score_tokens(model_, sequences, options_.max_batch_tokens);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    // The harness adds up windows, then their sums.
    LogLikelihood& result = results[text_of_sequence[s]];
    double window_sum = 0.0;
    for (const TokenScore& score : scores[s]) {
      window_sum += score.log_prob;
      result.is_greedy = result.is_greedy && score.is_greedy;
    }
    result.log_prob += window_sum;
  }
  for (std::size_t t = 0; on_result && t < results.size(); ++t) on_result(t, results[t]);
  return results;
}

std::vector<std::string> ModelRunner::generate(std::span<const GenerateRequest> requests,
                                               const ResultHook<std::string>& on_result) {
  const std::vector<TokenId> end_ids = end_ids_of(model_, tokenizer_);
  std::vector<std::string> texts;
  for (const GenerateRequest& request : requests) {
    std::vector<TokenId> prompt = encode_default(tokenizer_, request.prompt);
    const std::int64_t room = std::max<std::int64_t>(1, length_limit(options_, model_) - request.max_new_tokens);
    const auto kept = static_cast<std::ptrdiff_t>(std::min<std::size_t>(prompt.size(), static_cast<std::size_t>(room)));
    prompt.erase(prompt.begin(), prompt.end() - kept);
    TextStream stream(tokenizer_, request.stop);
    generate_tokens(model_, prompt, request, end_ids, [&](TokenId id) {
      stream.push(id);
      return !stream.stopped();
    });
    stream.finish();
    texts.push_back(stream.text());
    if (on_result) on_result(texts.size() - 1, texts.back());
  }
  return texts;
}

std::vector<TokenId> end_ids_of(const Decoder& model, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids;
  for (const std::int64_t id : model.config.eos_token_ids) ids.push_back(static_cast<TokenId>(id));
  if (tokenizer.eos_id() && std::find(ids.begin(), ids.end(), *tokenizer.eos_id()) == ids.end())
    ids.push_back(*tokenizer.eos_id());
  return ids;
}

namespace {

// Uniform in [0, 1) with 53 bits. SplitMix64 (Steele, Lea, Flood 2014).
class SamplingRandom {
 public:
  explicit SamplingRandom(std::uint64_t seed) : state_(seed) {}
  double uniform() {
    state_ += 0x9E3779B97F4A7C15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
};

std::size_t greedy_token(std::span<const float> logits) {
  return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) -
                                  logits.begin());  // the first of equals
}

// Draws from the smallest set of most likely tokens whose probabilities reach top_p (arXiv:1904.09751).
std::size_t sampled_token(std::span<const float> logits, const GenerateRequest& request, SamplingRandom& random) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights(logits.size());
  std::transform(logits.begin(), logits.end(), weights.begin(),
                 [&](float logit) { return std::exp((logit - highest) / request.temperature); });
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::size_t num_kept = 0;
  double kept = 0.0;
  while (num_kept < order.size() && (num_kept == 0 || kept < request.top_p * total)) kept += weights[order[num_kept++]];

  double rest = random.uniform() * kept;
  for (std::size_t i = 0; i + 1 < num_kept; ++i) {
    rest -= weights[order[i]];
    if (rest < 0.0) return order[i];
  }
  return order[num_kept - 1];
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Feeds tokens to the cache; the logits of what follows the last one.
at::Tensor next_logits_V(const Decoder& model, const std::vector<TokenId>& tokens, KvCache& cache) {
  const std::vector<std::int64_t> ids(tokens.begin(), tokens.end());
  const at::Tensor ids_T = at::tensor(ids, at::kLong).to(model.embed_tokens_VD.device());
  const at::Tensor hidden_TD = model.forward_cached(ids_T, cache);
  return model.logits(hidden_TD.narrow(0, hidden_TD.size(0) - 1, 1)).squeeze(0).to(at::kCPU, at::kFloat).contiguous();
}

}  // namespace

GenerationResult generate_tokens(const Decoder& model, const std::vector<TokenId>& prompt,
                                 const GenerateRequest& request, const std::vector<TokenId>& end_ids,
                                 const std::function<bool(TokenId)>& on_token) {
  const at::NoGradGuard no_grad;
  const auto num_prompt = static_cast<std::int64_t>(prompt.size());
  const std::int64_t max_length = model.config.max_position_embeddings;
  if (prompt.empty()) throw InputError("the prompt has no tokens");
  if (num_prompt >= max_length) {
    throw InputError(str("the prompt has ", with_commas(num_prompt), " tokens, which leaves no room in the model's ",
                         with_commas(max_length)));
  }
  const std::int64_t max_new_tokens = std::min(request.max_new_tokens, max_length - num_prompt);
  GenerationResult result;
  if (max_new_tokens <= 0) return result;

  const auto start = std::chrono::steady_clock::now();
  KvCache cache = model.make_cache(num_prompt + max_new_tokens);
  at::Tensor logits_V = next_logits_V(model, prompt, cache);
  result.prefill_seconds = seconds_since(start);

  SamplingRandom random(request.seed);
  for (std::int64_t i = 0; i < max_new_tokens; ++i) {
    if (i > 0) logits_V = next_logits_V(model, {result.tokens.back()}, cache);
    const std::span<const float> logits(logits_V.const_data_ptr<float>(), static_cast<std::size_t>(logits_V.numel()));
    if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
      throw NumericsError(str("token ", i, " after the prompt: a logit is not finite"));
    }
    const auto id =
        static_cast<TokenId>(request.temperature > 0.0 ? sampled_token(logits, request, random) : greedy_token(logits));
    if (std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end()) break;
    result.tokens.push_back(id);
    if (on_token && !on_token(id)) break;
  }
  result.decode_seconds = seconds_since(start) - result.prefill_seconds;
  return result;
}

}  // namespace dagmoe
