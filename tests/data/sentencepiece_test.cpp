#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "data/bpe_tokenizer.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/unigram_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

using namespace dagmoe;

namespace {

using Ids = std::vector<TokenId>;
namespace fs = std::filesystem;

/// The folder with the shared tokenizers; it may not be there.
fs::path shared_tokenizers() {
  const char* shared = std::getenv("DAGMOE_SHARED");
  return (shared != nullptr ? fs::path(shared) : fs::path(DAGMOE_SOURCE_DIR "/../shared")) / "data/tokenizers";
}

fs::path llama2_model() { return shared_tokenizers() / "llama2/tokenizer.model"; }

std::unique_ptr<Tokenizer> llama2(SpacePrefix prefix) {
  return make_sentencepiece(llama2_model(), {.prefix = prefix, .adds_bos = std::nullopt, .added_tokens = {}}, {});
}

TokenizerConfig with_legacy(bool legacy) {
  TokenizerConfig config;
  config.legacy = legacy;
  return config;
}

TokenizerJson document(const char* settings) {
  return {.where = "tokenizer.json", .settings = Json::parse(settings), .tokens = {}, .merges = {}};
}

/// The tokenizer.json that a converter makes of a sentencepiece BPE model: every pair of pieces that is a piece, best
/// score first.
TokenizerJson fast_form_of(const fs::path& model) {
  std::ifstream file(model, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const SentencePieceFile parts = read_sentencepiece_file(bytes, model.string());
  TokenizerJson result = document(R"({"model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true,
    "byte_fallback": true}, "pre_tokenizer": null, "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    "added_tokens": [{"id": 1, "content": "<s>", "special": true}, {"id": 2, "content": "</s>", "special": true}]})");
  std::unordered_set<std::string> known;
  for (const SentencePiece& piece : parts.pieces) known.insert(piece.text), result.tokens.push_back(piece.text);
  std::vector<SentencePiece> by_score = parts.pieces;
  std::stable_sort(by_score.begin(), by_score.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  for (const SentencePiece& piece : by_score) {
    for (std::size_t cut = 1; cut < piece.text.size(); ++cut) {
      std::pair halves(piece.text.substr(0, cut), piece.text.substr(cut));
      if (known.contains(halves.first) && known.contains(halves.second)) result.merges.push_back(std::move(halves));
    }
  }
  return result;
}

}  // namespace

TEST_CASE("Llama-2: the three rules for the leading space", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  struct Row {
    const char* text;
    Ids model, always, first;
  };
  const Row rows[] = {
      {"Hello", {15043}, {15043}, {15043}},
      {" Hello", {29871, 15043}, {15043}, {15043}},
      {"  Hello", {259, 15043}, {29871, 15043}, {29871, 15043}},
      {"</s>Hello", {2, 15043}, {2, 15043}, {2, 10994}},
      {"a</s>b", {263, 2, 289}, {263, 2, 289}, {263, 2, 29890}},
      {"Hello\n", {15043, 13}, {15043, 13}, {15043, 13}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(llama2(SpacePrefix::kModel)->encode(row.text) == row.model);
    CHECK(llama2(SpacePrefix::kAlways)->encode(row.text) == row.always);
    CHECK(llama2(SpacePrefix::kFirst)->encode(row.text) == row.first);
  }
  CHECK(llama2(SpacePrefix::kNever)->encode("Hello") == Ids{10994});
}

TEST_CASE("Llama-2: text that continues other text gets no leading space", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  for (const SpacePrefix prefix : {SpacePrefix::kModel, SpacePrefix::kAlways, SpacePrefix::kFirst}) {
    CHECK(llama2(prefix)->encode("Hello", {.continues = true}) == Ids{10994});
    CHECK(llama2(prefix)->encode(" Hello", {.continues = true}) == Ids{15043});
  }
  // method.md 7.3: "### Response:" + "Paris" is ... ":" "Par" "is".
  const auto tokenizer = llama2(SpacePrefix::kModel);
  Ids separate = tokenizer->encode("### Response:");
  const Ids answer = tokenizer->encode("Paris", {.continues = true});
  separate.insert(separate.end(), answer.begin(), answer.end());
  CHECK(separate == tokenizer->encode("### Response:Paris"));
  CHECK(tokenizer->encode("a</s>b", {.continues = true}) == Ids{29874, 2, 289});
}

TEST_CASE("Llama-2: control tokens, BOS, EOS and names", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  const auto tokenizer = load_sentencepiece(llama2_model());
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  CHECK(tokenizer->adds_bos());
  CHECK(tokenizer->vocab_size() == 32000);
  CHECK(tokenizer->encode("Hello", {.add_bos = true, .add_eos = true}) == Ids{1, 15043, 2});
  CHECK(tokenizer->encode("</s>", {.parse_special = false}).size() > 1);
  CHECK(tokenizer->id_of("</s>") == 2);
  CHECK(tokenizer->id_of("\u2581Hello") == 15043);
  CHECK_FALSE(tokenizer->id_of("no such piece"));
  CHECK(tokenizer->token_bytes(15043) == " Hello");
  CHECK(tokenizer->token_bytes(13) == "\n");
  CHECK(tokenizer->token_bytes(40000).empty());
  CHECK(tokenizer->decode(Ids{1, 15043, 2}) == "Hello");
  CHECK(tokenizer->decode(Ids{1, 15043, 2}, true) == "<s> Hello</s>");
  CHECK(tokenizer->count_lost_bytes("\x04 \u4e2d") == 0);
  CHECK_THAT(tokenizer->description(),
             Catch::StartsWith("sentencepiece, leading space as the model says, 32000 tokens"));
}

TEST_CASE("Llama-2: the ids of published examples", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  const auto tokenizer = load_sentencepiece(llama2_model());
  const Json text = read_json_file(shared_tokenizers() / "golden/llama_encoded.json");
  CHECK(tokenizer->encode(text["text"].get<std::string>(), {.add_bos = true}) == text["token_ids"].get<Ids>());
  const Json cases =
      read_json_file(shared_tokenizers() / "golden/tokenizer_tests.json")["coreml-projects/Llama-2-7b-chat-coreml"];
  REQUIRE(cases.size() == 18);
  for (const Json& item : cases) {
    const auto input = item["input"].get<std::string>();
    CAPTURE(input);
    CHECK(tokenizer->encode(input, {.add_bos = true}) == item["encoded"]["input_ids"].get<Ids>());
    CHECK(tokenizer->decode(tokenizer->encode(input)) == input);
  }
}

TEST_CASE("Llama-2: any text comes back", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  const auto tokenizer = load_sentencepiece(llama2_model());
  const std::string parts[] = {"The ", "cat",    "'s",           " ",          "\n",   "\t",
                               "12",   "\u00e9", "\u4e2d\u6587", "\U0001F600", "\x04", "</s>"};
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    std::string text;
    for (std::size_t n = random() % 40; n > 0; --n) text += parts[random() % std::size(parts)];
    REQUIRE(tokenizer->decode(tokenizer->encode(text, {.parse_special = false})) == text);
    std::string bytes;
    for (const TokenId id : tokenizer->encode(text, {.parse_special = false, .continues = true}))
      bytes += tokenizer->token_bytes(id);
    REQUIRE(bytes == text);
  }
}

TEST_CASE("T5: a unigram model with its own normalizer", "[data]") {
  const fs::path file = shared_tokenizers() / "t5/sentencepiece.model";
  if (!fs::exists(file)) DAGMOE_SKIP("no shared data at " + file.string());
  const auto tokenizer = load_sentencepiece(file);
  CHECK_FALSE(tokenizer->bos_id());
  CHECK_FALSE(tokenizer->adds_bos());
  const Json text = read_json_file(shared_tokenizers() / "golden/t5_base_encoded.json");
  CHECK(tokenizer->encode(text["text"].get<std::string>(), {.add_eos = true}) == text["token_ids"].get<Ids>());
  const Json cases = read_json_file(shared_tokenizers() / "golden/tokenizer_tests.json")["t5-base"];
  REQUIRE(cases.size() == 18);
  for (const Json& item : cases) {
    const auto input = item["input"].get<std::string>();
    CAPTURE(input);
    CHECK(tokenizer->encode(input, {.add_eos = true}) == item["encoded"]["input_ids"].get<Ids>());
  }
  CHECK(tokenizer->count_lost_bytes("a \u4e2d") == 3);
}

TEST_CASE("sentencepiece: the rule is the folder's", "[data]") {
  const auto prefix_of = [](const char* settings) {
    const TokenizerJson json = document(settings);
    return sentencepiece_settings(&json, with_legacy(true)).prefix;
  };
  CHECK(prefix_of(R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]},
                      "pre_tokenizer": null})") == SpacePrefix::kModel);
  CHECK(prefix_of(R"({"normalizer": null, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}})") ==
        SpacePrefix::kFirst);
  CHECK(prefix_of(R"({"normalizer": null, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}})") ==
        SpacePrefix::kAlways);
  CHECK(prefix_of(R"({"normalizer": {"type": "Replace"}, "pre_tokenizer": {"type": "Split"}})") == SpacePrefix::kNever);
  CHECK_THROWS_WITH(prefix_of(R"({"normalizer": {"type": "Lowercase"}})"),
                    "tokenizer.json: normalizer: type 'Lowercase' is not known for a sentencepiece model");
  CHECK_THROWS_WITH(prefix_of(R"({"pre_tokenizer": {"type": "Whitespace"}})"), Catch::Contains("'Whitespace'"));
  CHECK_THROWS_WITH(prefix_of(R"({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "last"}})"),
                    Catch::Contains("'last'"));
  CHECK(sentencepiece_settings(nullptr, {}).prefix == SpacePrefix::kModel);
  CHECK(sentencepiece_settings(nullptr, with_legacy(true)).prefix == SpacePrefix::kAlways);
  CHECK(sentencepiece_settings(nullptr, with_legacy(false)).prefix == SpacePrefix::kFirst);
}

TEST_CASE("sentencepiece: a folder with tokenizer.model", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  const TextFile config("tokenizer_config.json", R"({"legacy": false, "add_bos_token": false, "eos_token": "<|end|>",
    "added_tokens_decoder": {"32000": {"content": "<|end|>", "special": true}}})");
  const fs::path folder = config.path().parent_path();
  fs::copy_file(llama2_model(), folder / "tokenizer.model");
  const auto tokenizer = load_tokenizer(folder);
  CHECK(tokenizer->eos_id() == 32000);
  CHECK(tokenizer->vocab_size() == 32001);
  CHECK_FALSE(tokenizer->adds_bos());
  CHECK(tokenizer->encode("a<|end|>b") == Ids{263, 32000, 29890});
}

TEST_CASE("sentencepiece: a damaged model is refused", "[data]") {
  const TextFile file("tokenizer.model", "this is no model");
  CHECK_THROWS_WITH(load_sentencepiece(file.path()),
                    file.name() + ": is no sentencepiece model; is the download complete?");
  CHECK_THROWS_AS(load_sentencepiece("/no/such/tokenizer.model"), InputError);
  if (!fs::exists(llama2_model())) return;
  std::ifstream model(llama2_model(), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(model), {}};
  const TextFile cut("tokenizer.model", bytes.substr(0, bytes.size() / 2));
  CHECK_THROWS_AS(load_sentencepiece(cut.path()), InputError);
}

TEST_CASE("Llama-2: its fast form, without the .model beside it, gives the ids of sentencepiece", "[data]") {
  if (!fs::exists(llama2_model())) DAGMOE_SKIP("no shared data at " + llama2_model().string());
  const fs::path corpus = shared_tokenizers().parent_path() / "corpora/wikitext-2.test.txt";
  if (!fs::exists(corpus)) DAGMOE_SKIP("no shared data at " + corpus.string());
  const auto fast = make_bpe_tokenizer(fast_form_of(llama2_model()), {});
  const auto library = load_sentencepiece(llama2_model());
  CHECK(fast->encode("  Hello") == Ids{259, 15043});
  CHECK(fast->encode("a</s>b") == Ids{263, 2, 289});
  std::ifstream file(corpus);
  std::int64_t num_lines = 0;
  for (std::string line; std::getline(file, line) && num_lines < 1000; ++num_lines) {
    CAPTURE(line);
    // The corpus has "<unk>", which stays text.
    REQUIRE(fast->encode(line, {.parse_special = false}) == library->encode(line, {.parse_special = false}));
  }
  CHECK(num_lines == 1000);
}
