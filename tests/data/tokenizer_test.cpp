#include "data/tokenizer.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "data/bpe_model.h"
#include "data/tokenizer_json.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

using Ids = std::vector<TokenId>;
namespace fs = std::filesystem;

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("dagmoe_tokenizer_" + std::to_string(std::random_device()()))) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }
  void write(const char* name, const std::string& text) const { std::ofstream(path_ / name, std::ios::binary) << text; }

 private:
  fs::path path_;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The folder with the shared data; it may not be there.
fs::path shared_data() {
  const char* shared = std::getenv("DAGMOE_SHARED");
  return (shared != nullptr ? fs::path(shared) : fs::path(DAGMOE_SOURCE_DIR "/../shared")) / "data";
}

/// The folder of a SmolLM2 model; it may not be there.
fs::path smollm2_folder() {
  if (const char* folder = std::getenv("DAGMOE_SMOLLM2")) return folder;
  const char* cache = std::getenv("DAGMOE_CACHE");
  const char* home = std::getenv("HOME");
  const fs::path base = cache != nullptr ? fs::path(cache) : fs::path(home != nullptr ? home : "/") / ".cache/dagmoe";
  return base / "models/smollm2";
}

/// The byte alphabet, one merge, three control tokens.
BpeVocabulary small_vocabulary() {
  BpeVocabulary vocabulary;
  vocabulary.tokens = {"<|end|>", "<s>", "</s>"};
  vocabulary.special_ids = {0, 1, 2};
  for (int byte = 0; byte < 256; ++byte)
    vocabulary.tokens.push_back(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
  vocabulary.tokens.push_back(to_byte_alphabet(" a"));
  vocabulary.merges = {to_byte_alphabet(" ") + " a"};
  vocabulary.pre_tokenizer = "smollm";
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.pad = 2;
  vocabulary.max_length = 64;
  vocabulary.chat_template = "{{ \"x\" }}\n";
  return vocabulary;
}

constexpr TokenId kFirstByte = 3;

void check_message(const fs::path& folder, const std::string& expected) {
  CHECK_THROWS_WITH(load_tokenizer(folder), Catch::Contains(expected));
  CHECK_THROWS_AS(load_tokenizer(folder), InputError);
}

}  // namespace

TEST_CASE("tokenizer files: what is written is read back", "[data]") {
  const Folder folder;
  write_tokenizer_files(folder.path(), small_vocabulary());
  const auto tokenizer = load_tokenizer(folder.path());
  CHECK(tokenizer->vocab_size() == 260);
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  CHECK_FALSE(tokenizer->adds_bos());
  CHECK(tokenizer->id_of("<|end|>") == 0);
  CHECK(tokenizer->id_of("\u0120a") == 259);
  CHECK(tokenizer->encode(" a<|end|>1", {.add_bos = true, .add_eos = true}) == Ids{1, 259, 0, kFirstByte + '1', 2});
  CHECK(tokenizer->description() == "byte-level BPE, pre-tokenizer digits + gpt2, 260 tokens");
  CHECK(read(folder.path() / "chat_template.jinja") == "{{ \"x\" }}\n");
  const Json config = read_json_file(folder.path() / "tokenizer_config.json");
  CHECK(config["tokenizer_class"] == "PreTrainedTokenizerFast");
  CHECK(config["chat_template"] == "{{ \"x\" }}\n");
  CHECK(config["model_max_length"] == 64);
  CHECK(config["pad_token"] == "</s>");
  CHECK_FALSE(config.contains("unk_token"));
  CHECK(read_json_file(folder.path() / "special_tokens_map.json")["eos_token"] == "</s>");
}

TEST_CASE("tokenizer files: BOS first becomes a post-processor", "[data]") {
  const Folder folder;
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.add_bos = true;
  vocabulary.pre_tokenizer = "gpt-2";
  write_tokenizer_files(folder.path(), vocabulary);
  CHECK(load_tokenizer(folder.path())->adds_bos());
  CHECK(load_tokenizer_json(folder.path() / "tokenizer.json")->bos_id() == 1);
  vocabulary.bos.reset();
  CHECK_THROWS_WITH(write_tokenizer_files(folder.path(), vocabulary), Catch::Contains("there is no BOS token"));
}

TEST_CASE("tokenizer files: what cannot be written is refused", "[data]") {
  const Folder folder;
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.pre_tokenizer = "default";
  CHECK_THROWS_WITH(write_tokenizer_files(folder.path(), vocabulary),
                    "tokenizer: pre-tokenizer 'default' is not known; known: gpt-2, smollm, olmo, qwen2, llama-bpe");
  vocabulary = small_vocabulary();
  vocabulary.eos = 1000;
  CHECK_THROWS_WITH(write_tokenizer_files(folder.path(), vocabulary),
                    Catch::Contains("1000 is outside the vocabulary of 260 tokens"));
  vocabulary = small_vocabulary();
  vocabulary.tokens[9] = "\xFF";
  CHECK_THROWS_WITH(write_tokenizer_files(folder.path(), vocabulary), "tokenizer: token 9 is not valid UTF-8");
}

TEST_CASE("tokenizer.json: both spellings of merges", "[data]") {
  const Folder folder;
  write_tokenizer_files(folder.path(), small_vocabulary());
  std::string text = read(folder.path() / "tokenizer.json");
  const std::string strings = "[\"\u0120 a\"]", pairs = "[[\"\u0120\",\"a\"]]";
  REQUIRE(text.find(strings) != std::string::npos);
  text.replace(text.find(strings), strings.size(), pairs);
  folder.write("tokenizer.json", text);
  CHECK(load_tokenizer(folder.path())->encode(" a") == Ids{259});
}

TEST_CASE("tokenizer_config.json: names special tokens, as texts or as objects", "[data]") {
  const Folder folder;
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.special_ids = {0};
  write_tokenizer_files(folder.path(), vocabulary);
  fs::remove(folder.path() / "special_tokens_map.json");
  folder.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "</s>", "lstrip": false}})");
  auto tokenizer = load_tokenizer(folder.path());
  CHECK_FALSE(tokenizer->bos_id());
  CHECK(tokenizer->eos_id() == 2);
  CHECK(tokenizer->encode("</s>") == Ids{2});  // special, although the list of added tokens lacks it
  folder.write("special_tokens_map.json", R"({"bos_token": "<s>", "eos_token": "<|end|>"})");
  tokenizer = load_tokenizer(folder.path());
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  folder.write("tokenizer_config.json", R"({"eos_token": "<eos>"})");
  check_message(folder.path(), "eos_token '<eos>' of tokenizer_config.json is not in the vocabulary");
  folder.write("tokenizer_config.json",
               R"({"added_tokens_decoder": {"260": {"content": "<eos>", "special": true}}, "eos_token": "<eos>"})");
  CHECK(load_tokenizer(folder.path())->eos_id() == 260);
  folder.write("tokenizer_config.json", R"({"added_tokens_decoder": {"2147483647": {"content": "<far>"}}})");
  check_message(folder.path(), "added_tokens_decoder: '2147483647' is no token id");
  folder.write("tokenizer_config.json", R"({"add_bos_token": 1})");
  check_message(folder.path(), "'add_bos_token': expected true or false");
}

TEST_CASE("tokenizer.json: broken files are refused with their path and reason", "[data]") {
  const Folder folder;
  check_message(folder.path(),
                "no tokenizer: found neither tokenizer.json, tokenizer.model, nor vocab.json with merges.txt");
  const auto refuse = [&](const std::string& text, const std::string& reason) {
    folder.write("tokenizer.json", text);
    check_message(folder.path(), (folder.path() / "tokenizer.json").string() + reason);
  };
  refuse("", ":1:1: ");
  refuse("[]", ": found no JSON object");
  refuse("{}", ": 'model' is missing; is this a tokenizer.json?");
  refuse("{\"model\": 3", ":1:");
  refuse(R"({"model": {"type": "BPE", "vocab": {}}})", ": model: 'vocab' is missing or empty");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": -1}}})", ": model.vocab: token 'a' has id -1, expected 0 to ");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 99999999}}})",
         ": model.vocab: token 'a' has id 99999999, expected 0 to ");
  // The list of tokens would take half a gigabyte.
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 16777215}}})",
         ": model.vocab: token 'a' has id 16777215, expected 0 to 65540");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a\n\u001b[2J": -1}}})",
         ": model.vocab: token 'a\\n\\x1b[2J' has id -1");
  refuse(R"({"model": {}, "decoder": null, "decoder": null})", ": key 'decoder' is given twice in one object");
  refuse(R"({"model": {"type": "BPE", "type": "BPE"}})", ": key 'type' is given twice in one object");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": "b"}}})", ": model.vocab: token 'a' has id \"b\"");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}}})", ": model.vocab: id 1 belongs to both 'a' and 'b'");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}})",
         ": merge 1: found \"a b c\", expected");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}})", ": merge 1: found [\"a\"], expected");
  refuse(R"({"model": {"type": "Unigram", "vocab": [["a", 0.5]]}})",
         ": model: type 'Unigram' is not known; known: BPE");
}

TEST_CASE("GPT-2: the ids of published examples", "[data]") {
  const fs::path data = shared_data() / "tokenizers";
  if (!fs::exists(data / "gpt2/gpt2_vocab.json")) DAGMOE_SKIP("no shared data at " + data.string());
  BpeVocabulary vocabulary;
  const auto ids = nlohmann::json::parse(read(data / "gpt2/gpt2_vocab.json"));
  vocabulary.tokens.resize(ids.size());
  for (const auto& [token, id] : ids.items()) vocabulary.tokens.at(id.get<std::size_t>()) = token;
  std::ifstream merges(data / "gpt2/gpt2_merges.txt");
  for (std::string line; std::getline(merges, line);) {
    if (!line.empty() && !line.starts_with("#version")) vocabulary.merges.push_back(line);
  }
  vocabulary.special_ids = {50256};
  vocabulary.pre_tokenizer = "gpt-2";
  vocabulary.bos = vocabulary.eos = 50256;
  const Folder folder;
  write_tokenizer_files(folder.path(), vocabulary);
  const auto tokenizer = load_tokenizer(folder.path());
  CHECK(tokenizer->count_lost_bytes(std::string(1, '\x04')) == 0);

  const Json text = read_json_file(data / "golden/gpt2_encoded_tokens.json");
  CHECK(tokenizer->encode(text["text"].get<std::string>()) == text["token_ids"].get<Ids>());
  const Json cases = read_json_file(data / "golden/tokenizer_tests.json")["distilgpt2"];
  REQUIRE(cases.size() == 18);
  for (const Json& item : cases) {
    const auto input = item["input"].get<std::string>();
    CAPTURE(input);
    CHECK(tokenizer->encode(input) == item["encoded"]["input_ids"].get<Ids>());
    CHECK(tokenizer->decode(tokenizer->encode(input)) == input);
  }
}

TEST_CASE("OLMo: runs of spaces are added tokens, text is NFC", "[data]") {
  const fs::path file = shared_data() / "tokenizers/olmo-gpt-neox/tokenizer.json";
  if (!fs::exists(file)) DAGMOE_SKIP("no shared data at " + file.string());
  const auto tokenizer = load_tokenizer_json(file);
  CHECK(tokenizer->vocab_size() == 50280);
  CHECK(tokenizer->encode("a  b") == Ids{66, 50276, 67});
  CHECK(tokenizer->encode("a  b", {.parse_special = false}) == Ids{66, 50276, 67});
  CHECK(tokenizer->encode("<|endoftext|>") == Ids{50279});
  CHECK_THAT(tokenizer->description(), Catch::StartsWith("byte-level BPE, NFC, pre-tokenizer gpt2, 50280 tokens"));
}

TEST_CASE("SmolLM2: the ids of Hugging Face, lost bytes counted", "[data]") {
  const fs::path folder = smollm2_folder();
  if (!fs::exists(folder / "tokenizer.json")) DAGMOE_SKIP("no SmolLM2 tokenizer at " + folder.string());
  const auto tokenizer = load_tokenizer(folder);
  CHECK(tokenizer->encode("x  5") == Ids{104, 256, 37});
  CHECK(tokenizer->encode("a   12 b") == Ids{81, 333, 33, 34, 278});
  CHECK(tokenizer->encode("\n\n 42") == Ids{8866, 36, 34});
  CHECK(tokenizer->encode("Question: What is 12 + 7?\nAnswer:") ==
        Ids{17872, 42, 1812, 314, 216, 33, 34, 1232, 216, 39, 47, 198, 21350, 42});
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  const Json cases = read_json_file(DAGMOE_SOURCE_DIR "/tests/golden/tokenizer_cases.json")["cases"];
  REQUIRE_FALSE(cases.empty());
  for (const Json& item : cases) {
    const auto text = item["text"].get<std::string>();
    CAPTURE(text);
    const Ids ids = tokenizer->encode(text);
    CHECK(ids == item["ids"].get<Ids>());
    CHECK(tokenizer->count_lost_bytes(text) == item["lost"].get<std::int64_t>());
    CHECK(tokenizer->decode(ids, true) == item.value("decoded", text));
  }
}

TEST_CASE("SmolLM2: any text without lost bytes comes back", "[data]") {
  const fs::path folder = smollm2_folder();
  if (!fs::exists(folder / "tokenizer.json")) DAGMOE_SKIP("no SmolLM2 tokenizer at " + folder.string());
  const auto tokenizer = load_tokenizer(folder);
  const std::string parts[] = {"The ", "cat",    "'s",           " ",          "\n", "\t",
                               "12",   "\u00e9", "\u4e2d\u6587", "\U0001F600", "!?", "<|im_end|>"};
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::size_t n = random() % 60; n > 0; --n) text += parts[random() % std::size(parts)];
    REQUIRE(tokenizer->decode(tokenizer->encode(text), true) == text);
    const Ids plain = tokenizer->encode(text, {.parse_special = false});
    REQUIRE(std::find(plain.begin(), plain.end(), 2) == plain.end());
    REQUIRE(tokenizer->decode(plain) == text);
  }
}
