#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "data/example_stream.h"
#include "tests/data/stream_answers.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

PromptPiece prompt(const std::string& text) { return {.text = text}; }
PromptPiece control(const std::string& text) { return {.text = text, .is_template = true}; }
PromptPiece answer(const std::string& text) {
  return {.text = text, .is_template = false, .is_supervised = true, .ends_turn = true};
}

// The tokens as text, the supervised ones in [].
std::string shown(const Tokenizer& tokenizer, const Example& example) {
  std::string text;
  for (std::size_t i = 0; i < example.tokens.size(); ++i) {
    const bool was = i > 0 && example.loss_mask[i - 1] != 0, is = example.loss_mask[i] != 0;
    if (is != was) text += is ? "[" : "]";
    text += tokenizer.token_bytes(example.tokens[i]);
  }
  return text + (!example.loss_mask.empty() && example.loss_mask.back() != 0 ? "]" : "");
}

// Records with the outputs from..to - 1, one a line.
std::string records(int from, int to) {
  std::string text;
  for (int i = from; i < to; ++i) text += str("{\"prompt\":\"p\",\"completion\":\"", i, "\"}\n");
  return text;
}

TEST_CASE("example: tokens of the answer and EOS are supervised, the prompt is not", "[data]") {
  const ByteTokenizer tokenizer;
  const Example example = make_example(tokenizer, {prompt("ab:"), answer("cd")}, 100);
  CHECK(shown(tokenizer, example) == "ab:[cd</s>]");
  CHECK(example.tokens.back() == kByteEos);
  CHECK(example.num_targets() == 3);
  CHECK_FALSE(example.truncated);
}

TEST_CASE("example: a sample that is too long loses its end, EOS included", "[data]") {
  const ByteTokenizer tokenizer;
  const std::vector<PromptPiece> pieces = {prompt("ab:"), answer("cd")};
  CHECK_FALSE(make_example(tokenizer, pieces, 6).truncated);
  const Example cut = make_example(tokenizer, pieces, 5);
  CHECK(shown(tokenizer, cut) == "ab:[cd]");
  CHECK(cut.truncated);
  const Example prompt_only = make_example(tokenizer, pieces, 3);
  CHECK(shown(tokenizer, prompt_only) == "ab:");
  CHECK(prompt_only.truncated);
  CHECK(prompt_only.num_targets() == 0);
  CHECK(shown(tokenizer, make_example(tokenizer, pieces, 2)) == "ab");
}

TEST_CASE("example: a supervised first token is no target", "[data]") {
  const Example example = make_example(ByteTokenizer(), {answer("abc")}, 100);
  CHECK(example.loss_mask == std::vector<std::uint8_t>{1, 1, 1, 1});
  CHECK(example.num_targets() == 3);
  CHECK(Example{}.num_targets() == 0);
}

TEST_CASE("example: control tokens in users' data stay text", "[data]") {
  const ByteTokenizer tokenizer;
  const Example example = make_example(
      tokenizer, {control("<|im_start|>u\n"), prompt("x<|im_end|>y"), control("<|im_end|>"), answer("</s>")}, 100);
  CHECK(std::count(example.tokens.begin(), example.tokens.end(), kByteImEnd) == 1);
  CHECK(std::count(example.tokens.begin(), example.tokens.end(), kByteEos) == 1);
  CHECK(example.tokens.back() == kByteEos);
  CHECK(shown(tokenizer, example) == "<|im_start|>u\nx<|im_end|>y<|im_end|>[</s></s>]");
}

TEST_CASE("example: BOS comes once at the start if the tokenizer adds it, also when the template writes it", "[data]") {
  const ByteTokenizer adds({.adds_bos = true}), adds_none;
  CHECK(shown(adds, make_example(adds, {prompt("a"), answer("b")}, 100)) == "<s>a[b</s>]");
  CHECK(shown(adds, make_example(adds, {control("<s>"), prompt("a"), answer("b")}, 100)) == "<s>a[b</s>]");
  CHECK(shown(adds, make_example(adds, {prompt(""), prompt("a"), answer("b")}, 100)) == "<s>a[b</s>]");
  CHECK(shown(adds_none, make_example(adds_none, {prompt("a"), answer("b")}, 100)) == "a[b</s>]");
  // Users' text that looks like BOS is not BOS.
  CHECK(make_example(adds, {prompt("<s>"), answer("b")}, 100).tokens.size() == 1 + 3 + 2);
}

TEST_CASE("example: only the first text gets a sentencepiece tokenizer's leading space", "[data]") {
  const ByteTokenizer tokenizer({.adds_bos = true, .dummy_prefix = true});
  CHECK(shown(tokenizer, make_example(tokenizer, {prompt("Q:"), answer("A")}, 100)) == "<s> Q:[A</s>]");
}

TEST_CASE("example: an answer needs an EOS token", "[data]") {
  const ByteTokenizer without({.has_eos = false});
  CHECK_THROWS_WITH(
      make_example(without, {prompt("a"), answer("b")}, 100),
      Equals("the tokenizer has no EOS token, which ends an answer; set eos_token in tokenizer_config.json"));
  CHECK_NOTHROW(make_example(without, {prompt("a")}, 100));
  const TextFile file("a.jsonl", records(0, 1));
  ExampleStream stream({source(file)}, without, {});
  CHECK_THROWS_WITH(stream.next(), Contains(file.name() + ":1: the tokenizer has no EOS token"));
}

TEST_CASE("document part: every token but the first is a target once, and only the last part has EOS", "[data]") {
  const ByteTokenizer tokenizer({.adds_bos = true});
  std::string text;
  for (int length = 1; length <= 24; ++length) {
    text.push_back(static_cast<char>('a' + length));
    const Example document = make_example(tokenizer, {answer(text)}, 100);
    const auto size = static_cast<std::int64_t>(document.tokens.size());
    REQUIRE(size == length + 2);
    for (std::int64_t max_seq_len = 2; max_seq_len <= size + 1; ++max_seq_len) {
      std::vector<TokenId> targets;
      std::int64_t next_token = 0;
      while (next_token < size) {
        const Example part = document_part(document, next_token, max_seq_len);
        REQUIRE(static_cast<std::int64_t>(part.tokens.size()) <= max_seq_len);
        REQUIRE(part.tokens.size() == part.loss_mask.size());
        REQUIRE(part.loss_mask.front() == 0);
        REQUIRE(part.num_targets() == static_cast<std::int64_t>(part.tokens.size()) - 1);
        REQUIRE((part.tokens.back() == kByteEos) == (next_token == size));
        REQUIRE((part.tokens.front() == kByteBos) == targets.empty());
        targets.insert(targets.end(), part.tokens.begin() + 1, part.tokens.end());
      }
      REQUIRE(targets == std::vector<TokenId>(document.tokens.begin() + 1, document.tokens.end()));
    }
  }
}

TEST_CASE("document part: a token outside the document is refused", "[data]") {
  const ByteTokenizer tokenizer;
  const Example document = make_example(tokenizer, {answer("abc")}, 100);
  for (std::int64_t outside : {-1, 4, 9}) {
    CHECK_THROWS_WITH(
        document_part(document, outside, 3),
        Equals(str("token ", outside, " is not in the text, which has 4; did the files change since the checkpoint?")));
  }
  std::int64_t next_token = 0;
  CHECK_THROWS_AS(document_part(document, next_token, 1), InternalError);
}

TEST_CASE("epoch order: a permutation that repeats for a seed and differs between epochs and seeds", "[data]") {
  const auto first = epoch_order(1000, 17, 0);
  CHECK(first == epoch_order(1000, 17, 0));
  CHECK(std::set<std::int64_t>(first.begin(), first.end()).size() == 1000);
  CHECK(*std::max_element(first.begin(), first.end()) == 999);
  CHECK(first != epoch_order(1000, 17, 1));
  CHECK(first != epoch_order(1000, 18, 0));
  CHECK(epoch_order(1000, 17, 1) != epoch_order(1000, 18, 0));
  CHECK(epoch_order(0, 17, 0).empty());
  CHECK(epoch_order(1, 17, 0) == std::vector<std::int64_t>{0});
}

TEST_CASE("epoch order: every order of three items is equally likely", "[data]") {
  std::map<std::vector<std::int64_t>, int> counts;
  for (int epoch = 0; epoch < 6000; ++epoch) ++counts[epoch_order(3, 5, epoch)];
  REQUIRE(counts.size() == 6);
  // Six standard deviations of a binomial count are 173.
  for (const auto& [order, count] : counts) CHECK(std::abs(count - 1000) < 173);
}

// Worked out by an independent Python program of ten lines; a change of it would change what every resumed run sees.
TEST_CASE("epoch order: is the same on every machine", "[data]") {
  CHECK(epoch_order(10, 17, 0) == std::vector<std::int64_t>{5, 6, 1, 0, 9, 2, 8, 7, 4, 3});
  CHECK(epoch_order(10, 17, 1) == std::vector<std::int64_t>{6, 7, 9, 8, 5, 1, 2, 0, 4, 3});
}

TEST_CASE("example stream: an epoch holds every example of every file exactly once", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile first("a.jsonl", records(0, 150)), second("b.jsonl", records(150, 200));
  for (const bool shuffle : {false, true}) {
    ExampleStream stream({source(first), source(second)}, tokenizer, {.shuffle = shuffle, .seed = 3});
    CHECK(stream.size() == 200);
    std::vector<std::string> in_order;
    for (int i = 0; i < 200; ++i) in_order.push_back(str(i));
    std::vector<std::vector<std::string>> epochs;
    for (int epoch = 0; epoch < 3; ++epoch) {
      CHECK(stream.position().epoch == epoch);
      epochs.push_back(epoch_of(stream));
      CHECK(std::is_permutation(epochs.back().begin(), epochs.back().end(), in_order.begin(), in_order.end()));
      CHECK((epochs.back() == in_order) == !shuffle);
    }
    CHECK((epochs[0] == epochs[1]) == !shuffle);
    ExampleStream again({source(first), source(second)}, tokenizer, {.shuffle = shuffle, .seed = 3});
    CHECK(epoch_of(again) == epochs[0]);
    CHECK(epoch_of(again) == epochs[1]);
  }
}

TEST_CASE("example stream: examples know their line", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", "\n" + records(0, 1) + "\n\n" + records(1, 2));
  ExampleStream stream({source(file)}, tokenizer, {.shuffle = false});
  CHECK(stream.next()->line == 2);
  CHECK(stream.next()->line == 5);
}

TEST_CASE("example stream: from any position the next example is that of the uninterrupted run", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 150));
  const ExampleStreamOptions options = {.seed = 3};
  ExampleStream whole({source(file)}, tokenizer, options), resumed({source(file)}, tokenizer, options);
  for (int i = 0; i < 2 * 151 + 10; ++i) {  // two epochs, their ends included, and a bit
    if (i % 7 == 0) whole.peek();           // to look ahead changes no position
    const StreamPosition position = whole.position();
    const auto expected = whole.next();
    if (i % 13 != 0 && i % 151 < 148) continue;
    resumed.seek(position);
    CHECK(resumed.position().epoch == position.epoch);
    CHECK(resumed.position().next_index == position.next_index);
    const auto got = resumed.next();
    REQUIRE(got.has_value() == expected.has_value());
    if (got) CHECK(got->tokens == expected->tokens);
    CHECK(resumed.position().epoch == whole.position().epoch);
    CHECK(resumed.position().next_index == whole.position().next_index);
  }
}

// Texts of 0, 7, 14 .. letters behind their number, mixed with samples.
struct Documents {
  static std::string lines() {
    std::string text;
    for (int i = 0; i < 90; ++i)
      text += str("{\"text\":\"", i, std::string(static_cast<std::size_t>(7 * (i % 8)), 'x'), "\"}\n");
    return text;
  }
  ByteTokenizer tokenizer;
  TextFile texts{"a.jsonl", lines()}, samples{"b.jsonl", records(0, 30)};
  ExampleStream open(std::int64_t max_seq_len) const {
    ChatFormat short_form = chat_format(PromptTemplate::kMistralPlain);
    SourceConfig with_samples = source(samples);
    with_samples.chat = short_form;
    return ExampleStream({{.path = texts.path(), .format = RecordFormat::kText}, with_samples}, tokenizer,
                         {.max_seq_len = max_seq_len, .seed = 3});
  }
};

TEST_CASE("example stream: long texts come in parts, one after the other, and nothing of them is lost", "[data]") {
  const Documents test;
  ExampleStream whole = test.open(500), parts = test.open(20);
  while (const auto document = whole.next()) {
    std::vector<TokenId> tokens;
    std::int64_t num_targets = 0;
    do {
      const auto part = parts.next();
      REQUIRE(part.has_value());
      CHECK(part->line == document->line);
      CHECK(part->tokens.size() <= 20);
      num_targets += part->num_targets();
      tokens.insert(tokens.end(), part->tokens.begin() + (tokens.empty() ? 0 : 1), part->tokens.end());
    } while (tokens.size() < document->tokens.size());
    CHECK(tokens == document->tokens);
    CHECK(num_targets == document->num_targets());
  }
  CHECK(parts.next() == std::nullopt);
  CHECK(whole.counters().split == 0);
  // i % 8 from 3 on: 21 letters, a number, EOS. 90 texts are 11 rounds of 8 and the first two of another.
  CHECK(parts.counters().split == 11 * 5);
  CHECK(parts.counters().truncated == 0);
  CHECK(parts.size() == 120);
}

TEST_CASE("example stream: a position inside a text is found again, under another max_seq_len too", "[data]") {
  const Documents test;
  ExampleStream whole = test.open(20), resumed = test.open(20), wider = test.open(500);
  int num_inside = 0;
  for (int i = 0; i < 500; ++i) {
    const StreamPosition position = whole.position();
    const auto expected = whole.next();
    if (position.next_token == 0 && i % 7 != 0) continue;
    resumed.seek(position);
    const auto got = resumed.next();
    REQUIRE(got.has_value() == expected.has_value());
    if (!got) continue;
    CHECK(got->tokens == expected->tokens);
    CHECK(got->loss_mask == expected->loss_mask);
    CHECK(resumed.position().next_token == whole.position().next_token);
    if (position.next_token == 0) continue;
    ++num_inside;
    wider.seek(position);
    const auto rest = wider.next();
    CHECK(std::equal(expected->tokens.begin(), expected->tokens.end(), rest->tokens.begin()));
    CHECK(rest->tokens.back() == kByteEos);
  }
  CHECK(num_inside > 50);
  wider.seek({.epoch = 0, .next_index = 0, .next_token = 5000});
  CHECK_THROWS_WITH(wider.next(), Contains("token 5000 is not in the text"));
}

TEST_CASE("example stream: a position outside the data is refused", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 3));
  ExampleStream stream({source(file)}, tokenizer, {});
  CHECK_NOTHROW(stream.seek({.epoch = 5, .next_index = 3}));
  CHECK(stream.next() == std::nullopt);
  CHECK(stream.position().epoch == 6);
  CHECK_THROWS_WITH(
      stream.seek({.epoch = 1, .next_index = 4}),
      Equals("example 4 of epoch 1 is not in the data, which has 3; did the files change since the checkpoint?"));
  CHECK_THROWS_AS(stream.seek({.epoch = -1, .next_index = 0}), InputError);
  CHECK_THROWS_AS(stream.seek({.epoch = 0, .next_index = -1}), InputError);
}

TEST_CASE("example stream: peek shows what next takes", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 3));
  ExampleStream stream({source(file)}, tokenizer, {});
  for (int i = 0; i < 3; ++i) {
    REQUIRE(stream.peek() != nullptr);
    const Example seen = *stream.peek();
    CHECK(stream.position().next_index == i);
    CHECK(stream.next()->tokens == seen.tokens);
  }
  CHECK(stream.peek() == nullptr);
  CHECK(stream.position().epoch == 0);
  CHECK(stream.next() == std::nullopt);
  CHECK(stream.position().epoch == 1);
  CHECK(stream.peek() != nullptr);
}

TEST_CASE("example stream: a limit uses the first records of each file", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile first("a.jsonl", records(0, 5)), second("b.jsonl", records(5, 6));
  ExampleStream stream({source(first), source(second)}, tokenizer, {.limit = 2, .shuffle = false});
  CHECK(epoch_of(stream) == std::vector<std::string>{"0", "1", "5"});
}

TEST_CASE("example stream: bad records within the budget are counted, reported and left out", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 1) + "{\"prompt\":\"p\"}\n{broken\n" + records(1, 2));
  ExampleStream stream({source(file)}, tokenizer, {.max_bad_records = 2, .shuffle = false});
  CHECK(stream.size() == 2);
  CHECK(stream.counters().records == 4);
  CHECK(stream.counters().bad_records == 2);
  CHECK(stream.counters().bad_record_reports ==
        std::vector<std::string>{
            file.name() + ":2: field 'completion' is missing; format 'prompt_completion' needs prompt, completion",
            file.name() + ":3: broken JSON: the record has no end; is the line complete?"});
  CHECK(epoch_of(stream) == std::vector<std::string>{"0", "1"});
}

TEST_CASE("example stream: one bad record beyond the budget stops, naming each", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 1) + "7\n8\n");
  CHECK_THROWS_WITH(ExampleStream({source(file)}, tokenizer, {.max_bad_records = 1}),
                    Equals(file.name() + ":2: found a number, expected an object\n" + file.name() +
                           ":3: found a number, expected an object\n"
                           "2 bad records of 3, max_bad_records is 1; repair the data or raise it"));
  const TextFile one("a.jsonl", records(0, 1) + "7\n");
  CHECK_THROWS_WITH(ExampleStream({source(one)}, tokenizer, {}),
                    Equals(one.name() + ":2: found a number, expected an object\n"
                                        "1 bad record of 2, max_bad_records is 0; repair the data or raise it"));
  std::string many;
  for (int i = 0; i < 130; ++i) many += "7\n";
  const TextFile thirteen("a.jsonl", many);
  CHECK_THROWS_WITH(
      ExampleStream({source(thirteen)}, tokenizer, {.max_bad_records = 129}),
      Contains(thirteen.name() + ":10: found a number, expected an object\nand 120 more\n130 bad records of 130"));
  CHECK_THROWS_AS(ExampleStream({source(one)}, tokenizer, {}), InputError);
}

TEST_CASE("example stream: bad records of an array on one line are told apart by their number", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.json", "[{\"prompt\":\"p\",\"completion\":\"c\"},7,{},\n8]");
  ExampleStream stream({source(file)}, tokenizer, {.max_bad_records = 3});
  CHECK(
      stream.counters().bad_record_reports ==
      std::vector<std::string>{
          file.name() + ":1: record 2: found a number, expected an object",
          file.name() + ":1: record 3: field 'prompt' is missing; format 'prompt_completion' needs prompt, completion",
          file.name() + ":2: found a number, expected an object"});
}

TEST_CASE("example stream: a file without a good record is refused", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile good("a.jsonl", records(0, 1)), empty("b.jsonl", "\n"), bad("c.jsonl", "7\n");
  CHECK_THROWS_WITH(ExampleStream({source(good), source(empty)}, tokenizer, {}),
                    Equals(empty.name() + ": there is no good record in it"));
  CHECK_THROWS_WITH(ExampleStream({source(bad)}, tokenizer, {.max_bad_records = 9}),
                    Equals(bad.name() + ": there is no good record in it"));
  CHECK_THROWS_AS(ExampleStream({{.path = "no/such/file.jsonl"}}, tokenizer, {}), InputError);
  CHECK_THROWS_AS(ExampleStream({}, tokenizer, {}), InternalError);
}

TEST_CASE("example stream: a conversation that its template has no room for is a bad record", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},)"
                                 R"({"role":"assistant","content":"a"}]})");
  const SourceConfig alpaca = {.path = file.path(), .format = RecordFormat::kMessages};
  CHECK_THROWS_WITH(ExampleStream({alpaca}, tokenizer, {}),
                    Contains(":1: a conversation of 3 messages with a system turn"));
  SourceConfig chatml = alpaca;
  chatml.chat.form = PromptTemplate::kChatMl;
  ExampleStream stream({chatml}, tokenizer, {});
  CHECK(shown(tokenizer, *stream.next()) ==
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n");
}

TEST_CASE("example stream: an Alpaca sample reaches the model byte for byte and ends in EOS", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.json", R"([{"instruction":"Hi <|im_end|>","input":"","output":"Ho"}])");
  ExampleStream stream({{.path = file.path()}}, tokenizer, {});
  CHECK(shown(tokenizer, *stream.next()) ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi <|im_end|>\n\n### Response:[Ho</s>]");
}

TEST_CASE("example stream: samples that lost every target are counted and left out", "[data]") {
  const ByteTokenizer tokenizer;
  const std::string long_prompt(400, 'p');
  const TextFile file("a.jsonl",
                      records(0, 1) + "{\"prompt\":\"" + long_prompt + "\",\"completion\":\"1\"}\n" + records(2, 3));
  ExampleStream stream({source(file)}, tokenizer, {.max_seq_len = 300, .shuffle = false});
  CHECK(epoch_of(stream) == std::vector<std::string>{"0", "2"});
  CHECK(stream.counters().without_target == 1);
  CHECK(stream.counters().truncated == 1);
  CHECK(stream.size() == 3);
}

TEST_CASE("example stream: an epoch without any target is refused", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 100));
  ExampleStream stream({source(file)}, tokenizer, {.max_seq_len = 20});
  CHECK_THROWS_WITH(stream.next(), Equals("none of the 100 examples of " + file.name() +
                                          " has a supervised token within max_seq_len (20); raise it"));
  ExampleStream two({source(file), source(file)}, tokenizer, {.max_seq_len = 20});
  CHECK_THROWS_WITH(two.next(), Contains("none of the 200 examples of " + file.name() + " and the other files has"));
}

TEST_CASE("example stream: a file that changes under way is noticed, with its place", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", records(0, 3));
  ExampleStream stream({source(file)}, tokenizer, {.shuffle = false});
  const auto first_line = static_cast<std::streamoff>(records(0, 1).size());
  std::fstream(file.path(), std::ios::in | std::ios::out | std::ios::binary).seekp(first_line).write("x", 1);
  CHECK(answer_of(*stream.next()) == "0");
  for (int i = 0; i < 2; ++i) {
    CHECK_THROWS_WITH(stream.next(), Equals(file.name() + ":2: the file has changed since it was opened; start again"));
  }
  stream.seek({.epoch = 0, .next_index = 2});
  CHECK(answer_of(*stream.next()) == "2");
}

}  // namespace
}  // namespace dagmoe
