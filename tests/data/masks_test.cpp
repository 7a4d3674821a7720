// Token ids and labels of real records beside the reference programs: tests/golden/make_masks.py says which, and how.
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/example_stream.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

fs::path shared_data() {
  const char* shared = std::getenv("DAGMOE_SHARED");
  return fs::path(shared == nullptr ? DAGMOE_SOURCE_DIR "/../shared" : shared) / "data";
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name) {
  const bool is_chat = name == "minimind";
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"bos_token", is_chat ? Json("<|im_start|>") : Json()},
                       {"eos_token", is_chat ? "<|im_end|>" : "<|endoftext|>"}};
  const TextFile file("tokenizer_config.json", config.dump());
  fs::create_symlink(shared_data() / "tokenizers" / name / "tokenizer.json",
                     file.path().parent_path() / "tokenizer.json");
  return load_tokenizer(file.path().parent_path());
}

std::vector<Json> read_records(const fs::path& path, std::size_t count) {
  std::ifstream in(path);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  std::vector<Json> records;
  if (path.extension() == ".json") {
    for (const Json& record : Json::parse(text)) records.push_back(record);
  } else {
    for (const auto& line : split(text, '\n')) {
      if (!line.empty()) records.push_back(Json::parse(line));
    }
  }
  records.resize(count);
  return records;
}

// Two exchanges, behind a system turn for every other record.
Json conversation(const std::vector<Json>& records, std::size_t i, bool is_sharegpt) {
  const auto turn = [is_sharegpt](const char* ours, const char* theirs, const Json& text) {
    return is_sharegpt ? Json{{"from", theirs}, {"value", text}} : Json{{"role", ours}, {"content", text}};
  };
  Json turns = Json::array();
  if (i % 2 == 1) turns.push_back(turn("system", "system", "Answer briefly."));
  for (const Json& record : {records[i], records[(i + 1) % records.size()]}) {
    turns.push_back(turn("user", "human", record["instruction"]));
    turns.push_back(turn("assistant", "gpt", record["output"]));
  }
  return {{is_sharegpt ? "conversations" : "messages", turns}};
}

// The records in the form that the case asks for, a line each.
std::string lines_of(const Json& item, const std::vector<Json>& records) {
  const std::string format = item["format"].get<std::string>();
  std::string text;
  for (std::size_t i = 0; i < records.size(); ++i) {
    Json record = records[i];
    if (format == "prompt_completion")
      record = {{"prompt", record["instruction"]}, {"completion", " " + record["output"].get<std::string>()}};
    if (format == "messages" || format == "sharegpt") record = conversation(records, i, format == "sharegpt");
    text += record.dump() + "\n";
  }
  return text;
}

std::string line_of(const Example& example) {
  std::string ids, labels;
  for (std::size_t i = 0; i < example.tokens.size(); ++i) {
    const std::string space = i == 0 ? "" : " ";
    ids += space + std::to_string(example.tokens[i]);
    labels += space + (example.loss_mask[i] != 0 ? std::to_string(example.tokens[i]) : "-100");
  }
  return ids + "|" + labels + "\n";
}

TEST_CASE("masks: ids and labels are those of Stanford's rule, TRL and transformers on 500 records each", "[data]") {
  if (!fs::exists(shared_data() / "alpaca")) DAGMOE_SKIP("no shared data; set DAGMOE_SHARED");
  const Json golden = read_json_file(DAGMOE_SOURCE_DIR "/tests/golden/masks.json");
  const auto count = golden["count"].get<std::size_t>(), block = golden["block"].get<std::size_t>();
  for (const Json& item : golden["cases"]) {
    CAPTURE(item["reference"], item["tokenizer"], item["format"], item["template"]);
    const std::vector<Json> records = read_records(shared_data() / item["file"].get<std::string>(), count);
    const TextFile file("a.jsonl", lines_of(item, records));
    const auto tokenizer = open_tokenizer(item["tokenizer"].get<std::string>());
    SourceConfig source = {.path = file.path(),
                           .format = *record_format_named(item["format"].get<std::string>()),
                           .chat = chat_format(*prompt_template_named(item["template"].get<std::string>()))};
    if (item["format"] == "dolly") source.columns = {{"context", "input"}, {"response", "output"}};
    if (item["template"] == "olmo") source.chat.bos = "", source.chat.eos = "<|endoftext|>";
    ExampleStream stream({source}, *tokenizer,
                         {.max_seq_len = 1 << 20, .shuffle = false, .tokenization = Tokenization::kJoined});
    std::string lines;
    std::size_t num_read = 0, num_blocks = 0;
    while (const auto example = stream.next()) {
      lines += line_of(*example);
      if (++num_read % block != 0) continue;
      CAPTURE(num_read);
      CHECK(sha256_hex(lines) == item["blocks"][num_blocks].get<std::string>());
      lines.clear();
      ++num_blocks;
    }
    CHECK(num_read == count);
  }
}

// method.md 7.3: where the tokens of prompt and answer are not those of both together, each policy has its own.
TEST_CASE("masks: separate and joined differ exactly where a token would span prompt and answer", "[data]") {
  if (!fs::exists(shared_data() / "tokenizers")) DAGMOE_SKIP("no shared data; set DAGMOE_SHARED");
  const auto tokenizer = open_tokenizer("olmo-gpt-neox");
  const auto both = [&](const std::string& prompt, const std::string& answer) {
    const std::vector<PromptPiece> pieces = {{.text = prompt},
                                             {.text = answer, .is_supervised = true, .ends_turn = true}};
    return std::pair(make_example(*tokenizer, pieces, 100), *make_joined_example(*tokenizer, pieces));
  };
  const auto [separate, joined] = both("### Response:", "Paris");
  CHECK(separate.tokens == joined.tokens);
  CHECK(separate.loss_mask == joined.loss_mask);
  for (const auto& [prompt, answer] : {std::pair{"### Response:\n", "\n\nParis"}, {"Answer: ", "42"}}) {
    const auto [piecewise, together] = both(prompt, answer);
    CHECK(piecewise.tokens != together.tokens);
    CHECK(tokenizer->decode(piecewise.tokens) == tokenizer->decode(together.tokens));
    const std::vector<TokenId> alone = tokenizer->encode(prompt);
    CHECK(std::equal(alone.begin(), alone.end(), piecewise.tokens.begin()));
  }
  // Data that spells a control token is cut up piece by piece, so that it stays text.
  CHECK_FALSE(make_joined_example(*tokenizer, {{.text = "a<|endoftext|>b"}}));
}

}  // namespace
}  // namespace dagmoe
