// Several sources in one stream: shares, order, resuming, threads; compressed sources; what is left out.
#include <zstd.h>

#include <fstream>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/duplicate_counter.h"
#include "data/example_stream.h"
#include "tests/data/stream_answers.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;

std::string records(const std::string& name, int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += str("{\"prompt\":\"p", i, "\",\"completion\":\"", name, i,
                std::string(static_cast<std::size_t>(i % 23), '.'), "\"}\n");
  return text;
}

std::string packed(const std::string& text) {
  std::string bytes(ZSTD_compressBound(text.size()), '\0');
  bytes.resize(ZSTD_compress(bytes.data(), bytes.size(), text.data(), text.size(), 3));
  return bytes;
}

TEST_CASE("permuted item: a bijection for every size, and another one for another seed", "[data]") {
  for (std::int64_t size = 1; size < 300; ++size) {
    std::set<std::int64_t> found;
    for (std::int64_t i = 0; i < size; ++i) found.insert(permuted_item(i, size, 7));
    REQUIRE(static_cast<std::int64_t>(found.size()) == size);
    REQUIRE(*found.begin() == 0);
    REQUIRE(*found.rbegin() == size - 1);
  }
  int num_equal = 0;
  for (std::int64_t i = 0; i < 1000; ++i) num_equal += permuted_item(i, 1000, 1) == permuted_item(i, 1000, 2);
  CHECK(num_equal < 20);
}

TEST_CASE("draws: by weight the shares of an epoch as long as the records, by epochs so many passes", "[data]") {
  using Ints = std::vector<std::int64_t>;
  CHECK(draws_per_epoch({{100}, {300}}) == Ints{100, 300});
  CHECK(draws_per_epoch({{100, 1.0}, {300, 1.0}}) == Ints{200, 200});
  CHECK(draws_per_epoch({{100, 3.0}, {300, std::nullopt}}) == Ints{300, 100});
  CHECK(draws_per_epoch({{100, {}, 2.0}, {300, {}, 0.5}, {10, {}, {}}}) == Ints{200, 150, 10});
  CHECK(draws_per_epoch({{100, {}, 1e-6}}) == Ints{1});
  CHECK(draws_per_epoch({{100, 5.0}}) == Ints{100});
}

// Three epochs of a mixture: every source goes through all of its records before one comes again.
TEST_CASE("mixture: no record of a source comes a second time before all of them came once", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile a("a.jsonl", records("a", 30)), b("b.jsonl", records("b", 50)),
      c("c.jsonl.zst", packed(records("c", 40)));
  SourceConfig from_a = source(a), from_b = source(b), from_c = source(c);
  from_a.epochs = 2.5, from_b.epochs = 0.3, from_c.epochs = 1.25;
  ExampleStream stream({from_a, from_b, from_c}, tokenizer, {.seed = 5, .shuffle_buffer = 16});
  CHECK(stream.size() == 75 + 15 + 50);
  std::map<char, std::vector<std::string>> drawn;
  for (int epoch = 0; epoch < 4; ++epoch) {
    std::map<char, int> counts;
    for (const auto& answer : epoch_of(stream)) {
      drawn[answer[0]].push_back(answer);
      ++counts[answer[0]];
    }
    CHECK(counts == std::map<char, int>{{'a', 75}, {'b', 15}, {'c', 50}});
  }
  for (const auto& [name, size] : {std::pair{'a', 30}, {'b', 50}, {'c', 40}}) {
    std::map<std::string, int> times;
    for (const auto& answer : drawn[name]) ++times[answer];
    const int draws = static_cast<int>(drawn[name].size());
    CHECK(static_cast<int>(times.size()) == size);
    for (const auto& [answer, count] : times) CHECK((count == draws / size || count == (draws + size - 1) / size));
  }
}

TEST_CASE("mixture: the stream is the same with any number of threads, and from any position", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile a("a.jsonl", records("a", 333)), b("b.jsonl", records("b", 50)),
      c("c.jsonl.zst", packed(records("c", 200)));
  SourceConfig from_a = source(a), from_b = source(b), from_c = source(c);
  from_a.weight = 2.0, from_b.weight = 3.0, from_c.weight = 1.0;
  const auto open = [&](std::int64_t num_threads) {
    return ExampleStream({from_a, from_b, from_c}, tokenizer,
                         {.seed = 11, .shuffle_buffer = 32, .num_threads = num_threads});
  };
  ExampleStream one = open(1), four = open(4), resumed = open(3);
  std::vector<StreamPosition> positions;
  std::vector<std::vector<TokenId>> tokens;
  for (int i = 0; i < 1500; ++i) {
    positions.push_back(one.position());
    const auto expected = one.next(), got = four.next();
    REQUIRE(expected.has_value() == got.has_value());
    if (expected) REQUIRE(expected->tokens == got->tokens);
    tokens.push_back(expected ? expected->tokens : std::vector<TokenId>{});
  }
  for (std::size_t i = 0; i < positions.size(); i += 97) {
    resumed.seek(positions[i]);
    for (std::size_t k = i; k < std::min(i + 70, positions.size()); ++k) {
      REQUIRE(resumed.position() == positions[k]);
      const auto got = resumed.next();
      REQUIRE((got ? got->tokens : std::vector<TokenId>{}) == tokens[k]);
    }
  }
}

TEST_CASE("mixture: examples taken before their turn are part of the position", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile a("a.jsonl", records("a", 40));
  const auto open = [&] { return ExampleStream({source(a)}, tokenizer, {.seed = 2}); };
  ExampleStream plain = open(), stream = open(), resumed = open();
  const auto order = epoch_of(plain);
  CHECK(answer_of(*stream.peek(3)) == order[3]);
  CHECK(answer_of(stream.take(3)) == order[3]);
  CHECK(answer_of(stream.take(1)) == order[1]);
  CHECK(stream.position() == StreamPosition{0, 0, 0, {1, 3}});
  CHECK(answer_of(*stream.peek(1)) == order[2]);
  CHECK(answer_of(*stream.peek(2)) == order[4]);
  resumed.seek(stream.position());
  std::vector<std::string> rest = epoch_of(stream);
  CHECK(epoch_of(resumed) == rest);
  rest.insert(rest.end(), {order[1], order[3]});
  CHECK(std::is_permutation(rest.begin(), rest.end(), order.begin(), order.end()));
  resumed.seek({0, 0, 0, {1, 3}});
  CHECK(answer_of(*resumed.next()) == order[0]);
  CHECK(resumed.position() == StreamPosition{0, 2, 0, {1}});
  CHECK(resumed.peek(37) == nullptr);
  CHECK_THROWS_AS(resumed.take(37), InternalError);
  CHECK_THROWS_AS(resumed.seek({0, 38, 0, {5}}), InputError);
}

TEST_CASE("mixture: a compressed source is shuffled within its buffer, and comes in its order without shuffling",
          "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile plain("a.jsonl", records("a", 100)), file("a.jsonl.zst", packed(records("a", 100)));
  ExampleStream in_order({source(plain)}, tokenizer, {.shuffle = false});
  ExampleStream unshuffled({source(file)}, tokenizer, {.shuffle = false, .shuffle_buffer = 7});
  const auto expected = epoch_of(in_order);
  CHECK(epoch_of(unshuffled) == expected);
  CHECK(epoch_of(unshuffled) == expected);
  ExampleStream shuffled({source(file)}, tokenizer, {.seed = 1, .shuffle_buffer = 10});
  const auto first = epoch_of(shuffled), second = epoch_of(shuffled);
  CHECK(first != second);
  for (std::size_t chunk = 0; chunk < 10; ++chunk) {
    const auto at = [chunk](const auto& list) { return list.begin() + static_cast<std::ptrdiff_t>(10 * chunk); };
    CHECK(std::is_permutation(at(first), at(first) + 10, at(expected)));
    CHECK(std::is_permutation(at(second), at(second) + 10, at(expected)));
  }
}

TEST_CASE("example stream: an error of a thread comes at its turn, with its file and line", "[data]") {
  const ByteTokenizer tokenizer;
  std::string text = records("a", 300);
  text += "{\"prompt\":\"p\",\"completion\":\"" + std::string(600, 'x') + "\"}\n" + records("b", 300);
  const TextFile file("a.jsonl", text);
  ExampleStream stream({source(file)}, tokenizer,
                       {.shuffle = false, .long_samples = LongSamples::kError, .num_threads = 4});
  for (int i = 0; i < 300; ++i) REQUIRE(stream.next());
  for (int i = 0; i < 2; ++i) {  // and again, when it is asked for again
    CHECK_THROWS_WITH(stream.next(), Contains(file.name() + ":301: the sample has ") &&
                                         Contains("tokens, max_seq_len is 512; raise it, or set data.long_samples"));
  }
}

TEST_CASE("example stream: long samples lose their end or their prompt, or are dropped, and are counted", "[data]") {
  const ByteTokenizer tokenizer({.adds_bos = true});
  const std::string line = "{\"prompt\":\"" + std::string(300, 'p') + "\",\"completion\":\"abc\"}\n";
  const std::string answer = "{\"prompt\":\"p\",\"completion\":\"" + std::string(300, 'x') + "\"}\n";
  const TextFile file("a.jsonl", "{\"prompt\":\"p\",\"completion\":\"short\"}\n" + line + answer);
  SourceConfig config = source(file);
  config.chat = chat_format(PromptTemplate::kMistralPlain);
  const auto open = [&](LongSamples rule, bool eos) {
    return ExampleStream({config}, tokenizer,
                         {.max_seq_len = 100, .shuffle = false, .long_samples = rule, .ends_cut_with_eos = eos});
  };
  ExampleStream dropping = open(LongSamples::kDrop, false);
  CHECK(epoch_of(dropping) == std::vector<std::string>{"short"});
  CHECK(dropping.counters().dropped == 2);

  ExampleStream prompt = open(LongSamples::kTruncatePrompt, false);
  CHECK(prompt.next()->tokens.size() < 100);
  const Example cut = *prompt.next();
  CHECK(cut.tokens.size() == 100);
  CHECK(cut.tokens[0] == kByteBos);
  CHECK(answer_of(cut) == "abc");
  CHECK(cut.tokens.back() == kByteEos);
  CHECK_FALSE(cut.truncated);
  const Example long_answer = *prompt.next();
  CHECK(long_answer.tokens.size() == 100);
  CHECK(long_answer.num_targets() == 99);
  CHECK(long_answer.truncated);
  CHECK(prompt.counters().prompts_cut == 2);
  CHECK(prompt.counters().truncated == 1);

  ExampleStream ending = open(LongSamples::kTruncate, true);
  ending.next();
  const Example ended = *ending.next();
  CHECK(ended.tokens.back() == kByteEos);
  CHECK(ended.loss_mask.back() == 1);
  CHECK(ended.line == 3);
  CHECK(ending.counters().without_target == 1);  // of the second nothing but prompt was left, and no end is put there
}

TEST_CASE("example stream: with deduplicate equal texts come once, over all sources", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile a("a.jsonl", records("a", 20) + records("b", 5)), b("b.jsonl", records("b", 10));
  ExampleStream stream({source(a), source(b)}, tokenizer, {.shuffle = false, .deduplicate = true});
  const auto answers = epoch_of(stream);
  CHECK(answers.size() == 30);
  CHECK(std::set<std::string>(answers.begin(), answers.end()).size() == 30);
  CHECK(stream.counters().duplicates == 5);
}

TEST_CASE("seen records: as many as there are, and none twice", "[data]") {
  SeenRecords seen;
  for (std::uint64_t i = 0; i < 5000; ++i) REQUIRE(seen.add({i / 3 + 1, i * i}));
  for (std::uint64_t i = 0; i < 5000; ++i) REQUIRE_FALSE(seen.add({i / 3 + 1, i * i}));
  CHECK(seen.size() == 5000);
}

TEST_CASE("example stream: valid_fraction splits by content, wherever a record stands", "[data]") {
  const ByteTokenizer tokenizer;
  const std::string text = records("a", 2000), more = records("b", 100);
  std::vector<std::string> lines = split(text, '\n');
  lines.pop_back();
  std::reverse(lines.begin(), lines.end());
  const TextFile there("a.jsonl", text), back("b.jsonl", more + join(lines, "\n"));
  const auto part = [&](const TextFile& file, DataSplit split_part) {
    ExampleStream stream({source(file)}, tokenizer, {.shuffle = false, .split = split_part, .valid_fraction = 0.1});
    std::set<std::string> found;
    for (const auto& answer : epoch_of(stream)) {
      if (answer[0] == 'a') found.insert(answer);
    }
    return found;
  };
  const auto valid = part(there, DataSplit::kValid), train = part(there, DataSplit::kTrain);
  CHECK(valid.size() + train.size() == 2000);
  CHECK(std::abs(static_cast<int>(valid.size()) - 200) < 6 * 14);  // six standard deviations
  CHECK(part(back, DataSplit::kValid) == valid);
  CHECK(part(back, DataSplit::kTrain) == train);
}

TEST_CASE("bad records: all of them are written with their text, over the budget too", "[data]") {
  const ByteTokenizer tokenizer;
  const TextFile file("a.jsonl", "{\"prompt\":1}\n" + records("a", 2) + "{\"prompt\":\"\xFF\"}\n\n{broken\n");
  const std::filesystem::path log = file.path().parent_path() / "run" / "bad_records.jsonl";
  const auto open = [&](std::int64_t budget) {
    return ExampleStream({source(file)}, tokenizer, {.max_bad_records = budget, .bad_records_file = log});
  };
  CHECK(epoch_of(*std::make_unique<ExampleStream>(open(3))).size() == 2);
  for (const std::int64_t budget : {2, 3}) {
    if (budget == 2) {
      CHECK_THROWS_WITH(open(budget), Contains("3 bad records of 5, max_bad_records is 2; repair the data or raise it; "
                                               "all of them are in " +
                                               log.string()));
    } else {
      open(budget);
    }
    std::ifstream in(log);
    std::vector<Json> entries;
    for (std::string line; std::getline(in, line);) entries.push_back(Json::parse(line));
    REQUIRE(entries.size() == 3);
    CHECK(entries[0]["file"] == file.name());
    CHECK(entries[0]["line"] == 1);
    CHECK(entries[0]["text"] == "{\"prompt\":1}");
    CHECK(entries[1]["line"] == 4);
    CHECK(entries[1]["reason"] == "invalid UTF-8");
    CHECK(entries[1]["text_base64"] == "eyJwcm9tcHQiOiL/In0=");
    CHECK(entries[2]["line"] == 6);
    CHECK(entries[2]["text"] == "{broken");
  }
}

TEST_CASE("index: places are found again, however many lines a record has", "[data]") {
  for (const std::int64_t lines_each : {1, 3, 5000}) {
    RecordIndex index;
    for (std::int64_t i = 0; i < 1000; ++i)
      index.add({static_cast<std::uint64_t>(i) * 12345678901ULL, 1 + i * lines_each});
    REQUIRE(index.size() == 1000);
    for (std::int64_t i = 0; i < 1000; ++i) {
      REQUIRE(index[i].offset == static_cast<std::uint64_t>(i) * 12345678901ULL);
      REQUIRE(index[i].line == 1 + i * lines_each);
    }
  }
  CHECK_THROWS_AS(RecordIndex().add({std::uint64_t{1} << 44, 1}), InputError);
}

TEST_CASE("index: a kept scan serves the same file read in the same way, and no other", "[data]") {
  const ByteTokenizer tokenizer;
  const std::string text = records("a", 500) + "{broken\n" + records("b", 500);
  const TextFile file("a.jsonl", text);
  const std::filesystem::path folder = file.path().parent_path() / "index";
  const auto run = [&](PromptTemplate form) {
    SourceConfig config = source(file);
    config.chat = chat_format(form);
    ExampleStream stream({config}, tokenizer,
                         {.max_bad_records = 1, .shuffle = false, .index_folder = folder, .index_min_bytes = 100});
    CHECK(stream.counters().records == 1001);
    CHECK(stream.counters().bad_record_reports ==
          std::vector<std::string>{file.name() + ":501: broken JSON: the record has no end; is the line complete?"});
    auto answers = epoch_of(stream);
    return answers;
  };
  const auto num_kept = [&] { return std::distance(std::filesystem::directory_iterator(folder), {}); };
  const auto expected = run(PromptTemplate::kAlpaca);
  CHECK(num_kept() == 1);
  CHECK(run(PromptTemplate::kAlpaca) == expected);
  run(PromptTemplate::kChatMl);
  CHECK(num_kept() == 2);
  // A byte of the same file, the same length: the checksum tells.
  std::string changed = text;
  changed[text.find("a7")] = 'z';
  std::ofstream(file.path(), std::ios::binary) << changed;
  CHECK(run(PromptTemplate::kAlpaca) != expected);
  // A damaged cache is scanned anew.
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::fstream kept(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    kept.seekp(static_cast<std::streamoff>(std::filesystem::file_size(entry.path()) / 2));
    kept << "damage";
  }
  CHECK(run(PromptTemplate::kAlpaca).size() == 1000);
}

// Read through the cache only: the kept scan is used, not made again.
TEST_CASE("index: a kept scan is what a source reads", "[data]") {
  const TextFile file("a.jsonl", records("a", 300));
  const std::filesystem::path folder = file.path().parent_path() / "index";
  const IndexCache cache(folder);
  FileScan scan;
  scan.num_records = 300;
  scan.index.add({0, 1});
  scan.bad.push_back({7, "made up", "text"});
  cache.keep(file.path(), "how", scan);
  const auto found = cache.find(file.path(), "how");
  REQUIRE(found);
  CHECK(found->index == scan.index);
  CHECK(found->num_records == 300);
  CHECK(found->bad == scan.bad);
  CHECK_FALSE(cache.find(file.path(), "other"));
}

TEST_CASE("duplicates: are counted beyond what is kept in memory", "[data]") {
  DuplicateCounter counter;
  for (std::uint64_t i = 0; i < 2'500'000; ++i) counter.add({(i % 2'400'000) * 0x9E3779B97F4A7C15ULL, i % 2'400'000});
  CHECK(counter.count() == 100'000);
  DuplicateCounter few;
  for (std::uint64_t i = 0; i < 10; ++i) few.add({i % 3, 0});
  CHECK(few.count() == 7);
}

}  // namespace
}  // namespace dagmoe
