// A hundred thousand mutated lines: whatever is in them, each is a record or a report with the right line, and none is
// there twice or lost.
#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/example_stream.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

constexpr int kLines = 100'000;

std::string good_line(int i, std::mt19937& random) {
  const std::string input = random() % 3 == 0 ? R"("input":null,)" : R"("input":"\u00e9 caf\u00e9",)";
  return str(R"({"instruction":"Do )", i, R"( \"it\"\n",)", input, R"("output":"answer )", i,
             R"(","extra":[1,{"a":[]}]})");
}

// A few bytes changed, taken out, doubled or put in; no line feed, which would make two lines of one.
std::string mutated(std::string line, std::mt19937& random) {
  const auto byte = [&random] {
    constexpr std::string_view kInteresting("{}[]\",:\\u0\x00\xff\xed\xa0\x80\t\r ", 19);
    char c = random() % 2 == 0 ? kInteresting[random() % kInteresting.size()] : static_cast<char>(random() % 256);
    return c == '\n' ? 'n' : c;
  };
  for (auto count = 1 + random() % 3; count > 0; --count) {
    if (line.empty()) line = "x";
    const std::size_t at = random() % line.size();
    switch (random() % 6) {
      case 0:
        line[at] = byte();
        break;
      case 1:
        line.erase(at, 1 + random() % 8);
        break;
      case 2:
        line.insert(at, line.substr(random() % line.size(), random() % 16));
        break;
      case 3:
        line.insert(at, 1, byte());
        break;
      case 4:
        line.resize(at);
        break;
      default:
        std::swap(line[at], line[random() % line.size()]);
    }
  }
  return line;
}

// What a second parser, nlohmann's, says of a line: whether it is a good record.
bool is_good(const std::string& line) {
  try {
    const Json record = parse_json(line, "line");
    if (!record.is_object()) return false;
    const auto is_text = [&record](const char* key) { return record.contains(key) && record[key].is_string(); };
    const bool input_fits = !record.contains("input") || record["input"].is_null() || record["input"].is_string();
    return is_text("instruction") && is_text("output") && !record["output"].get<std::string>().empty() && input_fits;
  } catch (const InputError&) {
    return false;
  }
}

bool is_blank(const std::string& line) { return line.find_first_not_of(" \t\r") == std::string::npos; }

TEST_CASE("fuzz: of 100,000 mutated lines every bad one is reported by its line, every good one comes once", "[data]") {
  std::mt19937 random(20261127);
  std::string text;
  std::vector<std::string> lines;
  for (int i = 0; i < kLines; ++i) {
    std::string line = good_line(i, random);
    if (random() % 2 == 0) line = mutated(std::move(line), random);
    text += line + (random() % 5 == 0 ? "\r\n" : "\n");
    lines.push_back(std::move(line));
  }
  const TextFile file("a.jsonl", text);
  const std::filesystem::path log = file.path().parent_path() / "bad_records.jsonl";
  std::int64_t num_bad = 0;
  {
    const ByteTokenizer tokenizer;
    ExampleStream stream({{.path = file.path()}}, tokenizer,
                         {.max_seq_len = 4096, .max_bad_records = kLines, .seed = 3, .bad_records_file = log});
    std::set<std::int64_t> good;
    while (const auto example = stream.next()) REQUIRE(good.insert(example->line).second);
    std::set<std::int64_t> bad;
    const TextFile copy("log.jsonl", [&log] {
      const auto reader = ByteStream::open(log);
      std::string all;
      std::vector<char> chunk(1 << 16);
      while (const std::size_t count = reader->read(chunk.data(), chunk.size())) all.append(chunk.data(), count);
      return all;
    }());
    const auto reader = RecordReader::open(copy.path());
    RawRecord record;
    std::unique_ptr<BadRecord> broken;
    while (reader->next(record, broken)) {
      REQUIRE(broken == nullptr);
      const std::int64_t line = std::stoll(record.find("line")->text);
      REQUIRE(bad.insert(line).second);
      REQUIRE_FALSE(good.contains(line));
      if (const RawField* original = record.find("text"))
        REQUIRE(original->text == strip_json_space(lines[static_cast<std::size_t>(line - 1)]));
    }
    num_bad = static_cast<std::int64_t>(bad.size());
    CHECK(stream.counters().bad_records == num_bad);
    std::int64_t num_differing = 0;
    for (std::int64_t line = 1; line <= kLines; ++line) {
      const std::string& of_line = lines[static_cast<std::size_t>(line - 1)];
      CAPTURE(line, of_line);
      if (is_blank(of_line)) {
        CHECK_FALSE((good.contains(line) || bad.contains(line)));
        continue;
      }
      REQUIRE(good.contains(line) != bad.contains(line));
      num_differing += good.contains(line) != is_good(std::string(strip_json_space(of_line)));
    }
    // The two parsers agree on every line.
    CHECK(num_differing == 0);
  }
  CHECK(num_bad > kLines / 10);
  CHECK(num_bad < kLines / 2 + kLines / 10);
}

}  // namespace
}  // namespace dagmoe
