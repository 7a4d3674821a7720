// Letters: T tokens, V vocabulary.
#include "eval/model_runner.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "eval/generation.h"
#include "eval/token_scores.h"
#include "eval/valid_loss.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

namespace dagmoe {
namespace {

using Ids = std::vector<TokenId>;

// ---- encode_request, contracts.md 4.1

// Merges "th" and " t" as a byte-level BPE would, so that a border can fall into a token.
class MergingTokenizer : public ByteTokenizer {
 public:
  using ByteTokenizer::ByteTokenizer;
  static constexpr TokenId kTh = 1000;
  Ids encode(std::string_view text, EncodeOptions options = {}) const override {
    Ids merged;
    for (const TokenId id : ByteTokenizer::encode(text, options)) {
      if (id == 'h' && !merged.empty() && merged.back() == 't') {
        merged.back() = kTh;
      } else {
        merged.push_back(id);
      }
    }
    return merged;
  }
};

EncodedRequest encoded(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation,
                       std::int64_t max_length = 100) {
  return encode_request(tokenizer, {context, continuation}, max_length);
}

TEST_CASE("encode_request: white space at the context's end moves to the continuation", "[eval]") {
  const ByteTokenizer tokenizer;
  const EncodedRequest request = encoded(tokenizer, "ab \n", "c");
  CHECK(request.context == Ids{'a', 'b'});
  CHECK(request.continuation == Ids{' ', '\n', 'c'});
  CHECK_FALSE(request.merged_boundary);
  CHECK(encoded(tokenizer, "a\x1C", "b").context == Ids{'a'});
  CHECK(encoded(tokenizer, "a\xC2\xA0", "b").continuation == Ids{0xC2, 0xA0, 'b'});
  CHECK(encoded(tokenizer, "a\xE2\x80\x8B", "b").continuation == Ids{'b'});
}

TEST_CASE("encode_request: a merge across the border is split by count and reported", "[eval]") {
  const MergingTokenizer tokenizer;
  const EncodedRequest request = encoded(tokenizer, "at", "he");
  CHECK(request.context == Ids{'a', 't'});
  CHECK(request.continuation == Ids{'e'});  // the whole is a, th, e
  CHECK(request.merged_boundary);
}

TEST_CASE("encode_request: a continuation that merges away has no tokens", "[eval]") {
  const MergingTokenizer tokenizer;
  CHECK_THROWS_WITH(encoded(tokenizer, "at", "h"), "the continuation has no tokens");
}

TEST_CASE("encode_request: an empty context is the prefix token, BOS or else EOS", "[eval]") {
  const ByteTokenizer tokenizer;
  CHECK(encoded(tokenizer, "", "ab").context == Ids{kByteBos});
  CHECK(encoded(tokenizer, "", "ab").continuation == Ids{'a', 'b'});
  const ByteTokenizer adds({.adds_bos = true});
  CHECK(encoded(adds, "", "ab").continuation == Ids{'a', 'b'});
}

TEST_CASE("encode_request: a continuation that begins with the prefix token gives it to the context", "[eval]") {
  const ByteTokenizer tokenizer;
  CHECK(encoded(tokenizer, "", "<s>ab").context == Ids{kByteBos});
  CHECK(encoded(tokenizer, "", "<s>ab").continuation == Ids{'a', 'b'});
  CHECK_THROWS_WITH(encoded(tokenizer, "", "<s>"), "the continuation has no tokens");
}

TEST_CASE("encode_request: a tokenizer that adds BOS does so once", "[eval]") {
  const ByteTokenizer tokenizer({.adds_bos = true});
  CHECK(encoded(tokenizer, "a", "b").context == Ids{kByteBos, 'a'});
  CHECK(encoded(tokenizer, "a", "b").continuation == Ids{'b'});
  CHECK(encoded(tokenizer, "<s>a", "b").context == Ids{kByteBos, 'a'});
}

TEST_CASE("encode_request: a tokenizer that adds EOS does so, as lm-evaluation-harness has it", "[eval]") {
  const ByteTokenizer tokenizer({.adds_eos = true});
  CHECK(encoded(tokenizer, "a", "bc").context == Ids{'a', kByteEos});
  CHECK(encoded(tokenizer, "a", "bc").continuation == Ids{'c', kByteEos});  // the whole without as many ids
  CHECK(encoded(tokenizer, "<s>a", "b").context == Ids{kByteBos, 'a'});
}

TEST_CASE("encode_request: a long context loses its first tokens, the input its last", "[eval]") {
  const ByteTokenizer tokenizer;
  const EncodedRequest request = encoded(tokenizer, "abcdef", "gh", 4);
  CHECK(request.context == Ids{'d', 'e', 'f'});
  CHECK(request.continuation == Ids{'g', 'h'});
  CHECK(request.truncated);
  CHECK_FALSE(encoded(tokenizer, "abcdef", "gh", 7).truncated);
  CHECK(encoded(tokenizer, "abcdef", "ghij", 4).context == Ids{'f'});
}

TEST_CASE("encode_request: what cannot be scored says why", "[eval]") {
  const ByteTokenizer tokenizer;
  CHECK_THROWS_WITH(encoded(tokenizer, "a", ""), "the continuation has no tokens");
  CHECK_THROWS_WITH(encoded(tokenizer, " \n", "a"), "the context has no tokens; is it white space only?");
  CHECK_THROWS_WITH(encoded(tokenizer, "a", "bcdef", 4),
                    "the continuation has 5 tokens, more than the model's maximum of 4");
}

// ---- Scoring

Decoder tiny_decoder(bool is_moe) {
  ModelConfig config;
  config.vocab_size = 260;
  config.hidden_size = 16;
  config.intermediate_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.max_position_embeddings = 64;
  config.initializer_range = 0.5;
  config.eos_token_ids = {kByteEos};
  if (is_moe) config.moe = MoeConfig{.num_experts = 4, .num_experts_per_tok = 2, .moe_intermediate_size = 16};
  Decoder model(config);
  initialize_parameters(model, 7);
  return model;
}

// log P of every next token of one sequence alone, from full logits in double.
at::Tensor log_probs_TV(const Decoder& model, const Ids& ids) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> input(ids.begin(), ids.end());
  const auto T = static_cast<std::int64_t>(ids.size());
  const ModelOutput output = model.forward({at::tensor(input, at::kLong), at::arange(T, at::kLong), {0, T}});
  return at::log_softmax(model.logits(output.hidden_TD).to(at::kDouble), -1);
}

LogLikelihood slow_log_likelihood(const Decoder& model, const Tokenizer& tokenizer,
                                  const LogLikelihoodRequest& request) {
  const EncodedRequest encoded = encode_request(tokenizer, request, model.config.max_position_embeddings);
  Ids ids = encoded.context;
  ids.insert(ids.end(), encoded.continuation.begin(), encoded.continuation.end() - 1);
  const at::Tensor all_TV = log_probs_TV(model, ids);
  LogLikelihood result{.is_greedy = true};
  for (std::size_t i = 0; i < encoded.continuation.size(); ++i) {
    const auto row = static_cast<std::int64_t>(encoded.context.size() + i) - 1;
    result.log_prob += all_TV[row][encoded.continuation[i]].item<double>();
    result.is_greedy = result.is_greedy && all_TV[row].argmax().item<std::int64_t>() == encoded.continuation[i];
  }
  return result;
}

std::vector<LogLikelihoodRequest> mixed_requests() {
  return {{"Question: Why?\nAnswer:", " yes"},
          {"Question: Why?\nAnswer:", " no"},
          {"a", "b"},
          {"a", "c"},
          {"", "hello"},
          {"one two three four five six seven eight nine ten eleven twelve thirteen", " fourteen"},
          {"a", "b"},
          {"ab", "c"},
          {"a", "bc"}};
}

TEST_CASE("log_likelihood: equals one full pass per request, whatever the batch size", "[eval]") {
  const ByteTokenizer tokenizer;
  for (const bool is_moe : {false, true}) {
    const Decoder model = tiny_decoder(is_moe);
    const auto requests = mixed_requests();
    for (const std::int64_t max_batch_tokens : {1, 50, 4096}) {
      ModelRunner runner(model, tokenizer, {.max_batch_tokens = max_batch_tokens});
      const auto results = runner.log_likelihood(requests, {});
      REQUIRE(results.size() == requests.size());
      for (std::size_t r = 0; r < requests.size(); ++r) {
        INFO("moe " << is_moe << ", batch " << max_batch_tokens << ", request " << r);
        const LogLikelihood expected = slow_log_likelihood(model, tokenizer, requests[r]);
        CHECK(results[r].log_prob == Approx(expected.log_prob).margin(1e-4).epsilon(1e-5));
        CHECK(results[r].is_greedy == expected.is_greedy);
      }
      CHECK(results[5].truncated);
      CHECK(results[4].num_tokens == 5);
    }
  }
}

TEST_CASE("log_likelihood: equal inputs that split at different points keep their own scores", "[eval]") {
  // lm-evaluation-harness 0.4.13 takes the shorter one's score from the wrong positions (contracts.md 4.1 rule 9).
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer);
  const std::vector<LogLikelihoodRequest> requests = {{"ab", "c"}, {"a", "bc"}};
  const auto results = runner.log_likelihood(requests, {});
  const at::Tensor all_TV = log_probs_TV(model, {'a', 'b'});
  const double c_after_ab = all_TV[1]['c'].item<double>(), b_after_a = all_TV[0]['b'].item<double>();
  CHECK(results[0].log_prob == Approx(c_after_ab).epsilon(1e-5));
  CHECK(results[1].log_prob == Approx(b_after_a + c_after_ab).epsilon(1e-5));
}

TEST_CASE("log_likelihood: the argmax continuation is greedy", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  const at::Tensor last_V = log_probs_TV(model, {'a'})[0].narrow(0, 0, 128);  // a single byte that is text
  const auto best = log_probs_TV(model, {'a'})[0].argmax().item<std::int64_t>();
  ModelRunner runner(model, tokenizer);
  const auto text_best = last_V.argmax().item<std::int64_t>();
  const std::vector<LogLikelihoodRequest> requests = {{"a", std::string(1, static_cast<char>(text_best))}};
  CHECK(runner.log_likelihood(requests, {}).front().is_greedy == (text_best == best));
}

TEST_CASE("log_likelihood: requests with one input share a pass", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer);
  const std::vector<LogLikelihoodRequest> requests = {
      {"Answer:", "A"}, {"Answer:", "B"}, {"Answer:", "C"}, {"Answer:", "A"}, {"other", "A"}};
  runner.log_likelihood(requests);
  CHECK(runner.counts().tokens_requested == 4 * 7 + 5);
  CHECK(runner.counts().tokens_computed == 7 + 5);
}

TEST_CASE("log_likelihood: a request that cannot be scored is named", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer);
  const std::vector<LogLikelihoodRequest> requests = {{"a", "b"}, {"a", ""}};
  CHECK_THROWS_WITH(runner.log_likelihood(requests, {}), "request 1: the continuation has no tokens");
  CHECK(runner.log_likelihood({}, {}).empty());
}

TEST_CASE("log_likelihood: logits that are not finite stop the evaluation", "[eval]") {
  const ByteTokenizer tokenizer;
  Decoder model = tiny_decoder(false);
  model.norm_D.fill_(std::nan(""));
  ModelRunner runner(model, tokenizer);
  const std::vector<LogLikelihoodRequest> requests = {{"a", "b"}};
  CHECK_THROWS_AS(runner.log_likelihood(requests, {}), NumericsError);
}

TEST_CASE("score_tokens: more rows than a chunk give the same scores", "[eval]") {
  Decoder model = tiny_decoder(false);
  model.config.max_position_embeddings = 1024;
  ScoringSequence sequence;
  for (int i = 0; i < 600; ++i) {
    sequence.input.push_back(i % 256);
    sequence.targets.push_back({599 - i, (i * 7) % 256});  // out of order on purpose
  }
  const auto scores = score_tokens(model, {&sequence, 1}, 100);
  const at::Tensor all_TV = log_probs_TV(model, sequence.input);
  for (std::size_t i = 0; i < sequence.targets.size(); ++i) {
    const auto& [position, token] = sequence.targets[i];
    CHECK(scores[0][i].log_prob == Approx(all_TV[position][token].item<double>()).margin(1e-4));
  }
}

// ---- Loss

TEST_CASE("sample_loss: only supervised tokens count, each predicted by the token before", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(true);
  ModelRunner runner(model, tokenizer, {.max_batch_tokens = 8});
  const std::vector<SampleLossRequest> requests = {
      {{{.text = "ask"}, {.text = "ok", .is_supervised = true, .ends_turn = true}}}, {{{.text = "only a prompt"}}}};
  const auto losses = runner.sample_loss(requests, {});
  const at::Tensor all_TV = log_probs_TV(model, {'a', 's', 'k', 'o', 'k'});
  const double expected = -(all_TV[2]['o'] + all_TV[3]['k'] + all_TV[4][kByteEos]).item<double>();
  CHECK(losses[0].nats == Approx(expected).epsilon(1e-5));
  CHECK(losses[0].num_tokens == 3);
  CHECK(losses[1].num_tokens == 0);
  CHECK(losses[1].nats == 0.0);
}

TEST_CASE("sample_loss: a sample longer than its maximum loses its end", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer);
  const std::vector<SampleLossRequest> requests = {
      {{{.text = "ask"}, {.text = "okay", .is_supervised = true, .ends_turn = true}}, 5}};
  const auto losses = runner.sample_loss(requests, {});
  CHECK(losses[0].num_tokens == 2);
  CHECK(losses[0].truncated);
}

TEST_CASE("mean_loss: a ratio of sums with the standard error of a ratio", "[eval]") {
  const std::vector<SampleLoss> losses = {{.nats = 2.0, .num_tokens = 1}, {.nats = 2.0, .num_tokens = 3}};
  const MeanLoss loss = mean_loss(losses);
  CHECK(loss.value == 1.0);
  CHECK(loss.num_tokens == 4);
  // Residuals 1 and -1: sqrt(2 * 2 / 1) / 4.
  CHECK(loss.standard_error == Approx(0.5));
  CHECK(std::isnan(mean_loss({losses.data(), 1}).standard_error));
  CHECK_THROWS_AS(mean_loss({}), NumericsError);
}

// ---- Generation

Ids greedy_by_full_passes(const Decoder& model, Ids ids, int count) {
  Ids generated;
  for (int i = 0; i < count; ++i) {
    const at::Tensor all_TV = log_probs_TV(model, ids);
    ids.push_back(static_cast<TokenId>(all_TV[-1].argmax().item<std::int64_t>()));
    generated.push_back(ids.back());
  }
  return generated;
}

TEST_CASE("generate: greedy tokens with a cache are those of full passes", "[eval]") {
  for (const bool is_moe : {false, true}) {
    const Decoder model = tiny_decoder(is_moe);
    const Ids prompt = {'a', 'b', 'c'};
    const auto result = generate_tokens(model, prompt, {.max_new_tokens = 12}, {}, {});
    CHECK(result.tokens == greedy_by_full_passes(model, prompt, 12));
  }
}

TEST_CASE("generate: ends at an end token, which is not returned, or when the caller says so", "[eval]") {
  const Decoder model = tiny_decoder(false);
  const Ids prompt = {'a', 'b', 'c'};
  const Ids all = generate_tokens(model, prompt, {.max_new_tokens = 8}, {}, {}).tokens;
  CHECK(generate_tokens(model, prompt, {.max_new_tokens = 8}, {all[0]}, {}).tokens.empty());
  int count = 0;
  const auto stopped = generate_tokens(model, prompt, {.max_new_tokens = 8}, {}, [&](TokenId) { return ++count < 3; });
  CHECK(stopped.tokens == Ids(all.begin(), all.begin() + 3));
}

TEST_CASE("generate: the same seed draws the same tokens and temperature 0 is greedy", "[eval]") {
  const Decoder model = tiny_decoder(false);
  const Ids prompt = {'x'};
  const auto draw = [&](std::uint64_t seed, double top_p) {
    return generate_tokens(model, prompt, {.max_new_tokens = 20, .temperature = 1.0, .top_p = top_p, .seed = seed}, {},
                           {})
        .tokens;
  };
  CHECK(draw(1, 1.0) == draw(1, 1.0));
  CHECK(draw(1, 1.0) != draw(2, 1.0));
  // A top_p that only the most likely token reaches is greedy.
  CHECK(draw(1, 1e-9) == greedy_by_full_passes(model, prompt, 20));
}

TEST_CASE("generate: sampling follows the model's probabilities", "[eval]") {
  const Decoder model = tiny_decoder(false);
  const at::Tensor probs_V = log_probs_TV(model, {'x'})[0].exp();
  const auto best = probs_V.argmax().item<std::int64_t>();
  constexpr int kDraws = 2000;
  int count = 0;
  for (int seed = 0; seed < kDraws; ++seed) {
    count +=
        generate_tokens(model, {'x'},
                        {.max_new_tokens = 1, .temperature = 1.0, .seed = static_cast<std::uint64_t>(seed)}, {}, {})
            .tokens[0] == best;
  }
  const double p = probs_V[best].item<double>();
  // Five standard deviations.
  CHECK(std::abs(count / static_cast<double>(kDraws) - p) < 5.0 * std::sqrt(p * (1.0 - p) / kDraws));
}

TEST_CASE("generate: the model's maximum length bounds a generation", "[eval]") {
  const Decoder model = tiny_decoder(false);
  CHECK(generate_tokens(model, Ids(60, 'a'), {.max_new_tokens = 100}, {}, {}).tokens.size() == 4);
  CHECK_THROWS_WITH(generate_tokens(model, Ids(64, 'a'), {}, {}, {}),
                    "the prompt has 64 tokens, which leaves no room in the model's 64");
  CHECK_THROWS_WITH(generate_tokens(model, {}, {}, {}, {}), "the prompt has no tokens");
}

TEST_CASE("generate: text is cut at a stop string", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer);
  const std::vector<GenerateRequest> free = {{.prompt = "abc", .max_new_tokens = 16}};
  const std::string text = runner.generate(free).front();
  const auto ascii =
      std::find_if(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  REQUIRE(ascii != text.end());
  const std::string stop(1, *ascii);
  const std::vector<GenerateRequest> stopped = {{.prompt = "abc", .stop = {stop}, .max_new_tokens = 16}};
  CHECK(runner.generate(stopped).front() == text.substr(0, text.find(stop)));
}

TEST_CASE("generate_batch: answers are those of each prompt alone, whatever the limits", "[eval]") {
  for (const bool is_moe : {false, true}) {
    const Decoder model = tiny_decoder(is_moe);
    const std::string header = "a beginning that all prompts share: ";
    std::vector<GenerationTask> tasks;
    for (int i = 0; i < 9; ++i) {
      const std::string prompt =
          (is_moe ? header : "") + std::string(static_cast<std::size_t>(1 + i * 7 % 5), 'a') + std::to_string(i);
      GenerateRequest request = {.max_new_tokens = 1 + i * 3 % 11};
      if (i % 4 == 3) request.temperature = 0.7, request.seed = static_cast<std::uint64_t>(i);
      tasks.push_back({Ids(prompt.begin(), prompt.end()), request});
    }
    std::vector<Ids> alone;
    for (const GenerationTask& task : tasks)
      alone.push_back(generate_tokens(model, task.prompt, task.request, {'e'}, {}).tokens);
    for (const std::int64_t max_batch_tokens : {1, 20, 4096}) {
      for (const std::int64_t max_cached_tokens : {1, 120, 4096}) {
        INFO("moe " << is_moe << ", batch " << max_batch_tokens << ", cache " << max_cached_tokens);
        std::vector<Ids> answers(tasks.size());
        std::vector<int> num_finished(tasks.size());
        ScoringWork work;
        generate_batch(model, tasks, {'e'}, {max_batch_tokens, max_cached_tokens},
                       {.on_token =
                            [&](std::size_t t, TokenId id) {
                              answers[t].push_back(id);
                              return true;
                            },
                        .on_finished = [&](std::size_t t) { ++num_finished[t]; }},
                       &work);
        CHECK(answers == alone);
        CHECK(num_finished == std::vector<int>(tasks.size(), 1));
        std::size_t num_prompt = 0;
        for (const GenerationTask& task : tasks) num_prompt += task.prompt.size();
        if (is_moe) CHECK(work.tokens < static_cast<std::int64_t>(num_prompt));  // the header once
      }
    }
  }
}

TEST_CASE("rolling_windows: every token once, each window as long as the model allows", "[eval]") {
  CHECK(rolling_windows(0, 4).empty());
  for (std::size_t num_tokens = 1; num_tokens < 20; ++num_tokens) {
    std::size_t next = 0;
    for (const RollingWindow& window : rolling_windows(num_tokens, 4)) {
      CHECK(window.begin == next);
      next = window.end;
      CHECK(window.end - window.context_begin <= 4);
      if (num_tokens >= 4) CHECK(window.end - window.context_begin == 4);
    }
    CHECK(next == num_tokens);
  }
}

TEST_CASE("rolling_log_likelihood: a text in windows, behind the prefix token", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer, {.max_length = 8});
  const std::string text = "a text of 20 letters";
  const std::vector<std::string> texts = {text, "", "ab"};
  const auto results = runner.rolling_log_likelihood(texts);
  double expected = 0;
  for (const auto& [begin, context] : {std::pair{0, 0}, std::pair{8, 8}, std::pair{16, 12}}) {
    Ids ids = {kByteBos};
    ids.insert(ids.end(), text.begin(), text.end());
    const Ids input(ids.begin() + context, ids.begin() + std::min(begin + 8, 20));
    const at::Tensor log_probs = log_probs_TV(model, input);
    for (int i = begin; i < std::min(begin + 8, 20); ++i)
      expected += log_probs[i - context][static_cast<unsigned char>(text[static_cast<std::size_t>(i)])].item<double>();
  }
  CHECK(results[0].log_prob == Approx(expected).epsilon(1e-5));
  CHECK(results[0].num_tokens == 20);
  CHECK(results[1].log_prob == 0);
  CHECK(results[2].num_tokens == 2);
}

TEST_CASE("log_likelihood: each result is reported once, when it is final", "[eval]") {
  const ByteTokenizer tokenizer;
  const Decoder model = tiny_decoder(false);
  ModelRunner runner(model, tokenizer, {.max_batch_tokens = 8});
  const auto requests = mixed_requests();
  std::vector<int> times(requests.size());
  std::vector<double> reported(requests.size());
  const auto results = runner.log_likelihood(requests, [&](std::size_t r, const LogLikelihood& result) {
    ++times[r];
    reported[r] = result.log_prob;
  });
  CHECK(times == std::vector<int>(requests.size(), 1));
  for (std::size_t r = 0; r < requests.size(); ++r) CHECK(reported[r] == results[r].log_prob);
}

}  // namespace
}  // namespace dagmoe
