#include "data/packed_batch.h"

#include <algorithm>
#include <numeric>

#include "base/text.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Ints = std::vector<std::int64_t>;
using Bins = std::vector<Ints>;

Example example_of(std::vector<TokenId> tokens, std::vector<std::uint8_t> mask) {
  return {.tokens = std::move(tokens), .loss_mask = std::move(mask)};
}

TEST_CASE("packing: two examples lie back to back as drawn", "[data]") {
  PackedBatch batch;
  append_example(batch, example_of({10, 11, 12}, {1, 1, 1}));
  append_example(batch, example_of({20, 21}, {1, 1}));
  CHECK(batch.input_ids == Ints{10, 11, 12, 20, 21});
  CHECK(batch.position_ids == Ints{0, 1, 2, 0, 1});
  CHECK(batch.segment_offsets == Ints{0, 3, 5});
  CHECK(batch.labels == Ints{11, 12, kIgnoreIndex, 21, kIgnoreIndex});
  CHECK(batch.num_targets == 3);
  CHECK(batch.num_tokens() == 5);
  CHECK(batch.num_segments() == 2);
}

TEST_CASE("packing: only supervised tokens become labels, at the position before them", "[data]") {
  PackedBatch batch;
  append_example(batch, example_of({1, 2, 3, 4, 5}, {0, 0, 1, 0, 1}));
  CHECK(batch.labels == Ints{kIgnoreIndex, 3, kIgnoreIndex, 5, kIgnoreIndex});
  CHECK(batch.num_targets == 2);
}

TEST_CASE("packing: a supervised first token is no label, neither its own nor its neighbour's", "[data]") {
  PackedBatch batch;
  append_example(batch, example_of({1, 2}, {0, 1}));
  append_example(batch, example_of({3}, {1}));
  append_example(batch, example_of({4, 5}, {1, 1}));
  CHECK(batch.labels == Ints{2, kIgnoreIndex, kIgnoreIndex, 5, kIgnoreIndex});
  CHECK(batch.num_targets == 2);
  CHECK(batch.segment_offsets == Ints{0, 2, 3, 5});
}

TEST_CASE("packing: targets of a batch are the targets of its examples", "[data]") {
  const Example first = example_of({1, 2, 3}, {1, 0, 1}), second = example_of({4, 5}, {0, 1});
  PackedBatch batch;
  append_example(batch, first);
  append_example(batch, second);
  CHECK(batch.num_targets == first.num_targets() + second.num_targets());
}

TEST_CASE("first fit decreasing: bins worked out by hand", "[data]") {
  CHECK(first_fit_decreasing(Ints{2, 5, 4, 7, 1, 3, 8}, 10) == Bins{{0, 6}, {3, 5}, {1, 2, 4}});
  CHECK(first_fit_decreasing(Ints{}, 10).empty());
  CHECK(first_fit_decreasing(Ints{10, 10}, 10) == Bins{{0}, {1}});
}

TEST_CASE("first fit decreasing: equal lengths keep their order", "[data]") {
  CHECK(first_fit_decreasing(Ints{4, 4, 4, 4, 4}, 8) == Bins{{0, 1}, {2, 3}, {4}});
}

TEST_CASE("first fit decreasing: an item longer than a bin is alone in one", "[data]") {
  CHECK(first_fit_decreasing(Ints{3, 12, 4}, 10) == Bins{{1}, {0, 2}});
}

// Records whose examples have the given numbers of tokens under the byte tokenizer.
class StepTest {
 public:
  explicit StepTest(const Ints& lengths) : file_("a.jsonl", text_of(lengths)) {}
  ExampleStream stream(ExampleStreamOptions options = {.shuffle = false}) const {
    options.max_seq_len = 100000;
    return ExampleStream(
        {{.path = file_.path(), .format = RecordFormat::kPromptCompletion, .chat = {.form = PromptTemplate::kChatMl}}},
        tokenizer_, options);
  }

 private:
  // <|im_start|>user\n p <|im_end|>\n <|im_start|>assistant\n X <|im_end|>\n: 22 tokens without X.
  static std::string text_of(const Ints& lengths) {
    std::string text;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      const std::string answer(static_cast<std::size_t>(lengths[i] - 22), static_cast<char>('a' + i % 26));
      text += "{\"prompt\":\"p\",\"completion\":\"" + answer + "\"}\n";
    }
    return text;
  }
  TextFile file_;
  ByteTokenizer tokenizer_;
};

// The lengths of the segments of each micro batch.
Bins segments_of(const StepBatch& step) {
  Bins all;
  for (const PackedBatch& batch : step.micro_batches) {
    Ints lengths(batch.segment_offsets.size());
    std::adjacent_difference(batch.segment_offsets.begin(), batch.segment_offsets.end(), lengths.begin());
    all.emplace_back(lengths.begin() + 1, lengths.end());
  }
  return all;
}

TEST_CASE("step batch: takes as many examples as its tokens hold, in stream order", "[data]") {
  const StepTest test({30, 40, 50, 60, 100});
  ExampleStream stream = test.stream();
  const StepBatchConfig config = {.step_tokens = 120, .micro_batch_tokens = 120};
  const auto first = next_step_batch(stream, config);
  REQUIRE(first);
  CHECK(segments_of(*first) == Bins{{30, 40, 50}});
  CHECK(first->num_tokens == 120);
  CHECK(first->num_examples == 3);
  CHECK(first->num_targets == 30 + 40 + 50 - 3 * 21);  // the answers and their end of turn
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{60}});
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{100}});
  CHECK(next_step_batch(stream, config) == std::nullopt);
  CHECK(stream.position().epoch == 1);
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{30, 40, 50}});
}

TEST_CASE("step batch: an example longer than a step is a step of its own", "[data]") {
  const StepTest test({200, 30, 300});
  ExampleStream stream = test.stream();
  const StepBatchConfig config = {.step_tokens = 100, .micro_batch_tokens = 50};
  for (const std::int64_t length : {200, 30, 300})
    CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{length}});
}

TEST_CASE("step batch: can count examples instead of tokens", "[data]") {
  const StepTest test({30, 40, 50, 60, 100});
  ExampleStream stream = test.stream();
  const StepBatchConfig config = {.step_tokens = 1, .step_sequences = 3, .micro_batch_tokens = 1000};
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{30, 40, 50}});
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{60, 100}});
  CHECK(next_step_batch(stream, config) == std::nullopt);
}

TEST_CASE("step batch: micro batches are filled by first fit decreasing and lose nothing", "[data]") {
  const StepTest test({30, 60, 40, 70, 25, 35});
  ExampleStream stream = test.stream();
  const auto step = next_step_batch(stream, {.step_tokens = 1000, .micro_batch_tokens = 100});
  REQUIRE(step);
  // By hand, longest first: 70 | 60 | 40 to 60 | 35 new | 30 to 70 | 25 to 35.
  CHECK(segments_of(*step) == Bins{{30, 70}, {60, 40}, {25, 35}});
  std::int64_t num_tokens = 0, num_targets = 0;
  for (const PackedBatch& batch : step->micro_batches) {
    num_tokens += batch.num_tokens();
    num_targets += batch.num_targets;
  }
  CHECK(num_tokens == step->num_tokens);
  CHECK(num_targets == step->num_targets);
}

TEST_CASE("step batch: micro batches are shared out evenly where several processes take turns", "[data]") {
  const auto segments = [](const Ints& lengths, std::int64_t micro_batch_tokens, std::int64_t num_takers) {
    const StepTest test(lengths);
    ExampleStream stream = test.stream();
    return segments_of(*next_step_batch(
        stream, {.step_tokens = 1000, .micro_batch_tokens = micro_batch_tokens, .num_takers = num_takers}));
  };
  const Ints lengths = {30, 60, 40, 70, 25, 35};
  // By hand: one micro batch would do, so each of two takes half of 260 tokens.
  CHECK(segments(lengths, 1000, 2) == Bins{{60, 70}, {30, 40, 25, 35}});
  // Three of 100 tokens would do, so that two processes take two each, of about 260 / 4.
  CHECK(segments(lengths, 100, 2) == Bins{{70}, {60}, {40, 25}, {30, 35}});
  CHECK(segments(lengths, 100, 1) == Bins{{30, 70}, {60, 40}, {25, 35}});
  // Fewer examples than processes, and one that outweighs the others.
  CHECK(segments({70}, 100, 2) == Bins{{70}});
  CHECK(segments({30, 300}, 400, 3) == Bins{{300}, {30}});
}

TEST_CASE("step batch: an epoch of steps uses every example once and resumes at any step", "[data]") {
  Ints lengths;
  for (int i = 0; i < 200; ++i) lengths.push_back(23 + i * 37 % 101);
  const StepTest test(lengths);
  const ExampleStreamOptions options = {.shuffle = true, .seed = 9};
  const StepBatchConfig config = {.step_tokens = 500, .micro_batch_tokens = 200};
  ExampleStream stream = test.stream(options), resumed = test.stream(options);
  Ints seen;
  while (true) {
    const StreamPosition position = stream.position();
    const auto step = next_step_batch(stream, config);
    resumed.seek(position);
    const auto again = next_step_batch(resumed, config);
    REQUIRE(step.has_value() == again.has_value());
    if (!step) break;
    CHECK(step->num_tokens <= 500);
    REQUIRE(step->micro_batches.size() == again->micro_batches.size());
    for (std::size_t i = 0; i < step->micro_batches.size(); ++i) {
      CHECK(step->micro_batches[i].input_ids == again->micro_batches[i].input_ids);
      CHECK(step->micro_batches[i].labels == again->micro_batches[i].labels);
    }
    for (const Ints& segments : segments_of(*step)) seen.insert(seen.end(), segments.begin(), segments.end());
  }
  std::sort(seen.begin(), seen.end());
  std::sort(lengths.begin(), lengths.end());
  CHECK(seen == lengths);
}

TEST_CASE("step batch: with lookahead the longest example that fits closes a step before its turn", "[data]") {
  const StepTest test({60, 50, 70, 30, 35, 90, 41, 25});
  ExampleStream stream = test.stream();
  const StepBatchConfig config = {.step_tokens = 150, .micro_batch_tokens = 150, .lookahead = 4};
  // Behind 60 and 50 the 70 has no room: of 70, 30, 35, 90 the longest that fits is 35.
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{60, 50, 35}});
  CHECK(stream.position() == StreamPosition{0, 2, 0, {2}});
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{70, 30, 41}});
  CHECK(stream.position() == StreamPosition{0, 5, 0, {1}});
  CHECK(segments_of(*next_step_batch(stream, config)) == Bins{{90, 25}});
  CHECK(next_step_batch(stream, config) == std::nullopt);
  CHECK(stream.position() == StreamPosition{1, 0, 0, {}});
}

TEST_CASE("step batch: how a step is split has no say in what it holds", "[data]") {
  Ints lengths;
  for (std::int64_t i = 0; i < 100; ++i) lengths.push_back(23 + (i * i * 7 + 3 * i) % 120);
  const StepTest test(lengths);
  const auto steps = [&](std::int64_t micro_batch_tokens, std::int64_t num_takers) {
    ExampleStream stream = test.stream();
    Bins found;
    while (const auto step = next_step_batch(stream, {.step_tokens = 512,
                                                      .micro_batch_tokens = micro_batch_tokens,
                                                      .lookahead = 16,
                                                      .num_takers = num_takers})) {
      Ints& all = found.emplace_back();
      for (const auto& bin : segments_of(*step)) all.insert(all.end(), bin.begin(), bin.end());
      std::sort(all.begin(), all.end());
    }
    return found;
  };
  const Bins expected = steps(512, 1);
  CHECK(steps(150, 1) == expected);
  CHECK(steps(1, 1) == expected);
  CHECK(steps(150, 3) == expected);
}

TEST_CASE("step batch: with lookahead every example is used once, and any step can be gone on from", "[data]") {
  Ints lengths;
  for (std::int64_t i = 0; i < 300; ++i) lengths.push_back(23 + (i * i * 7 + 3 * i) % 120);
  const StepTest test(lengths);
  const ExampleStreamOptions options = {.shuffle = true, .seed = 9};
  ExampleStream stream = test.stream(options), resumed = test.stream(options);
  const StepBatchConfig config = {.step_tokens = 512, .micro_batch_tokens = 256, .lookahead = 32};
  std::int64_t num_tokens = 0, num_capacity = 0;
  Ints found;
  while (true) {
    resumed.seek(stream.position());
    const auto step = next_step_batch(stream, config);
    const auto again = next_step_batch(resumed, config);
    REQUIRE(step.has_value() == again.has_value());
    CHECK(stream.position() == resumed.position());
    if (!step) break;
    REQUIRE(segments_of(*step) == segments_of(*again));
    for (std::size_t m = 0; m < step->micro_batches.size(); ++m) {
      REQUIRE(step->micro_batches[m].input_ids == again->micro_batches[m].input_ids);
      CHECK(step->micro_batches[m].num_tokens() <= 256);
    }
    for (const auto& bin : segments_of(*step)) found.insert(found.end(), bin.begin(), bin.end());
    num_tokens += step->num_tokens;
    num_capacity += 512;
  }
  std::sort(found.begin(), found.end());
  std::sort(lengths.begin(), lengths.end());
  CHECK(found == lengths);
  CHECK(static_cast<double>(num_tokens) > 0.95 * static_cast<double>(num_capacity));
}

}  // namespace
}  // namespace dagmoe
