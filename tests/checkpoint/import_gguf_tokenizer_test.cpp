#include "checkpoint/import_gguf_tokenizer.h"

#include <sentencepiece_processor.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/tokenizer.h"
#include "tests/base/helpers.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

namespace fs = std::filesystem;
using Ids = std::vector<TokenId>;

/// Kinds of tokens in tokenizer.ggml.token_type.
constexpr std::int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

/// Texts where tokenizers differ: runs of spaces, digits, marks that NFC composes, other scripts, special tokens.
const std::vector<std::string> kTexts = {"",
                                         "Hello",
                                         "  Hello  world \n\n 42",
                                         "I'VE 12345 don't, e\u0301t\u00e9",
                                         "\u6771\u4eac \U0001F600 \u00bd",
                                         "a</s>b <|endoftext|>x",
                                         "x\tif (a == b) {\r\n        return;\r\n}"};

struct Token {
  std::string text;
  std::int32_t type = kNormal;
  float score = 0.0f;
};

/// The tokenizer keys that both kinds have.
GgufBuilder tokenizer_of(const std::string& model, const std::string& pre, const std::vector<Token>& tokens) {
  std::vector<std::string> texts;
  std::vector<std::int32_t> types;
  for (const Token& token : tokens) texts.push_back(token.text), types.push_back(token.type);
  GgufBuilder builder;
  builder.add_text("general.architecture", "llama");
  builder.add_text("tokenizer.ggml.model", model);
  builder.add_text("tokenizer.ggml.pre", pre);
  builder.add_texts("tokenizer.ggml.tokens", texts);
  builder.add_i32s("tokenizer.ggml.token_type", types);
  return builder;
}

GgufBuilder bpe(const std::string& pre, const std::vector<Token>& tokens, const std::vector<std::string>& merges) {
  GgufBuilder builder = tokenizer_of("gpt2", pre, tokens);
  builder.add_texts("tokenizer.ggml.merges", merges);
  return builder;
}

GgufBuilder pieces_by_score(const std::vector<Token>& tokens) {
  GgufBuilder builder = tokenizer_of("llama", "default", tokens);
  std::string scores = raw<std::uint32_t>(6) + raw<std::uint64_t>(tokens.size());
  for (const Token& token : tokens) scores += raw(token.score);
  builder.add("tokenizer.ggml.scores", 9, scores);
  return builder;
}

/// A tokenizer that went through a GGUF file, with the folder it is in.
struct Written {
  TemporaryFolder folder;
  std::unique_ptr<Tokenizer> tokenizer;
  Json config() const { return read_json_file(folder / "tokenizer_config.json"); }
};

std::unique_ptr<Written> write(const GgufBuilder& builder, std::int64_t vocab_size = 100000) {
  auto written = std::make_unique<Written>();
  write_text(written->folder / "m.gguf", builder.build());
  const GgufFile file = GgufFile::open(written->folder / "m.gguf");
  ModelConfig config;
  config.vocab_size = vocab_size;
  gguf_tokenizer_writer(GgufMetadata(file), config)(written->folder.path());
  written->tokenizer = load_tokenizer(written->folder.path());
  return written;
}

/// What writing says, without the path in front of a key.
std::string error_of(const GgufBuilder& builder, std::int64_t vocab_size = 100000) {
  const std::string message = message_of<InputError>([&] { write(builder, vocab_size); });
  const std::size_t at = message.find("metadata key");
  return at == std::string::npos ? message : message.substr(at);
}

const std::vector<Token> kSmallBpe = {{"<|end|>", kControl},
                                      {"a"},
                                      {"b"},
                                      {"c"},
                                      {"ab"},
                                      {"<call>", kUserDefined},
                                      {"1"},
                                      {"11"},
                                      {"\u0120"},
                                      {"cab"},
                                      {"\u00c3"},
                                      {"\u00a9"}};

/// A sentencepiece vocabulary without bytes: "ab" and " ab" are the best pieces.
std::vector<Token> small_sentencepiece() {
  return {{"<unk>", kUnknown},       {"<s>", kControl},         {"</s>", kControl},
          {"\u2581", kNormal, -3},   {"a", kNormal, -4},        {"b", kNormal, -5},
          {"ab", kNormal, -1},       {"\u2581ab", kNormal, -2}, {"<x y>", kUserDefined, -1000},
          {"[PAD]", kUnused, -10000}};
}

fs::path shared_tokenizers() {
  const char* shared = std::getenv("DAGMOE_SHARED");
  return (shared != nullptr ? fs::path(shared) : fs::path(DAGMOE_SOURCE_DIR "/../shared")) / "data/tokenizers";
}

/// The vocabulary of a .model file as llama.cpp's converter writes it.
std::vector<Token> tokens_of(const sentencepiece::SentencePieceProcessor& model) {
  std::vector<Token> tokens;
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    const std::int32_t type = model.IsUnknown(id)   ? kUnknown
                              : model.IsControl(id) ? kControl
                              : model.IsUnused(id)  ? kUnused
                              : model.IsByte(id)    ? kByte
                                                    : kNormal;
    tokens.push_back({model.IdToPiece(id), type, model.GetScore(id)});
  }
  return tokens;
}

void check_equal_ids(const Tokenizer& found, const Tokenizer& expected) {
  for (const std::string& text : kTexts) {
    INFO(text);
    const Ids ids = expected.encode(text);
    CHECK(found.encode(text) == ids);
    CHECK(found.decode(ids, true) == expected.decode(ids, true));
  }
}

}  // namespace

TEST_CASE("gguf tokenizer: user-defined tokens are cut out of the text and are no control tokens", "[import]") {
  const auto written = write(bpe("gpt-2", kSmallBpe, {"a b"}));
  CHECK(written->tokenizer->encode("ab<call>a<|end|>") == Ids{4, 5, 1, 0});
  CHECK(written->tokenizer->decode(Ids{4, 5, 0}) == "ab<call>");
}

TEST_CASE("gguf tokenizer: qwen2 keeps digits apart and composes marks", "[import]") {
  const auto qwen2 = write(bpe("qwen2", kSmallBpe, {"1 1"})), gpt2 = write(bpe("gpt-2", kSmallBpe, {"1 1"}));
  CHECK(qwen2->tokenizer->encode("11") == Ids{6, 6});
  CHECK(gpt2->tokenizer->encode("11") == Ids{7});
  CHECK(qwen2->tokenizer->encode("e\u0301") == Ids{10, 11});  // the two bytes of U+00E9
  CHECK_FALSE(qwen2->tokenizer->adds_bos());
}

TEST_CASE("gguf tokenizer: olmo is GPT-2's with composed marks", "[import]") {
  const auto written = write(bpe("olmo", kSmallBpe, {"1 1"}));
  CHECK(written->tokenizer->encode("11e\u0301") == Ids{7, 10, 11});
}

TEST_CASE("gguf tokenizer: llama-bpe takes whole pieces first and puts BOS in front", "[import]") {
  GgufBuilder builder = bpe("llama-bpe", kSmallBpe, {"a b", "1 1"});
  builder.add_u32("tokenizer.ggml.bos_token_id", 0);
  const auto written = write(builder);
  CHECK(written->tokenizer->encode("cab") == Ids{9});
  CHECK(write(bpe("qwen2", kSmallBpe, {"a b"}))->tokenizer->encode("cab") == Ids{3, 4});
  CHECK(written->tokenizer->encode("11") == Ids{7});
  CHECK(written->tokenizer->adds_bos());
  builder.add_bool("tokenizer.ggml.add_bos_token", false);
  CHECK_FALSE(write(builder)->tokenizer->adds_bos());
}

TEST_CASE("gguf tokenizer: sentencepiece pieces merge in the order of their scores", "[import]") {
  GgufBuilder builder = pieces_by_score(small_sentencepiece());
  builder.add_u32("tokenizer.ggml.bos_token_id", 1);
  builder.add_u32("tokenizer.ggml.eos_token_id", 2);
  builder.add_text("tokenizer.chat_template", "{{ messages }}");
  const auto written = write(builder);
  const Tokenizer& tokenizer = *written->tokenizer;
  CHECK(tokenizer.encode("ab ab") == Ids{7, 7});
  CHECK(tokenizer.encode("aab") == Ids{3, 4, 6});
  CHECK(tokenizer.encode("a  a") == Ids{3, 4, 3, 3, 4});  // runs of spaces stay
  CHECK(tokenizer.encode("\u00e9", {.continues = true}) == Ids{0});
  CHECK(tokenizer.encode("ab<x y></s>ab", {.add_bos = true}) == Ids{1, 7, 8, 2, 7});
  CHECK(tokenizer.encode("[PAD]", {.continues = true}) == Ids{0});
  CHECK(tokenizer.decode(Ids{7, 8, 2, 7}) == "ab<x y> ab");
  CHECK(tokenizer.bos_id() == 1);
  CHECK(tokenizer.eos_id() == 2);
  CHECK(tokenizer.adds_bos());
  CHECK(written->config()["tokenizer_class"] == "LlamaTokenizer");
  CHECK(written->config()["unk_token"] == "<unk>");
  CHECK(written->config()["added_tokens_decoder"]["8"]["special"] == false);
  CHECK(read_text(written->folder / "chat_template.jinja") == "{{ messages }}");
}

TEST_CASE("gguf tokenizer: sentencepiece without a space in front, and without BOS", "[import]") {
  GgufBuilder builder = pieces_by_score(small_sentencepiece());
  builder.add_u32("tokenizer.ggml.bos_token_id", 1);
  builder.add_bool("tokenizer.ggml.add_space_prefix", false);
  builder.add_bool("tokenizer.ggml.remove_extra_whitespaces", true);
  builder.add_bool("tokenizer.ggml.add_bos_token", false);
  const auto written = write(builder);
  CHECK(written->tokenizer->encode("ab  ab") == Ids{6, 7});
  CHECK_FALSE(written->tokenizer->adds_bos());
}

TEST_CASE("gguf tokenizer: the unknown piece is found by its key, its type or its name", "[import]") {
  std::vector<Token> tokens = small_sentencepiece();
  tokens[0].type = kControl;
  CHECK(write(pieces_by_score(tokens))->tokenizer->encode("\u00e9", {.continues = true}) == Ids{0});
  tokens[0].text = "<none>";
  CHECK(error_of(pieces_by_score(tokens)) ==
        "metadata key 'tokenizer.ggml.unknown_token_id': is missing, and no other key says which token is the unknown "
        "one");
  GgufBuilder builder = pieces_by_score(tokens);
  builder.add_u32("tokenizer.ggml.unknown_token_id", 0);
  CHECK(write(builder)->tokenizer->encode("\u00e9", {.continues = true}) == Ids{0});
}

TEST_CASE("gguf tokenizer: Llama-2's model encodes alike before and after", "[import]") {
  const fs::path original = shared_tokenizers() / "llama2/tokenizer.model";
  if (!fs::exists(original)) DAGMOE_SKIP("no shared data at " + original.string());
  sentencepiece::SentencePieceProcessor before, after;
  REQUIRE(before.Load(original.string()).ok());
  const std::vector<Token> tokens = tokens_of(before);
  GgufBuilder builder = pieces_by_score(tokens);
  builder.add_u32("tokenizer.ggml.bos_token_id", 1);
  builder.add_u32("tokenizer.ggml.eos_token_id", 2);
  const auto written = write(builder);
  REQUIRE(after.Load((written->folder / "tokenizer.model").string()).ok());
  REQUIRE(after.GetPieceSize() == 32000);
  for (const std::string& text : kTexts) {
    std::vector<int> expected, found;
    REQUIRE(before.Encode(text, &expected).ok());
    REQUIRE(after.Encode(text, &found).ok());
    CHECK(found == expected);
  }
  CHECK(after.bos_id() == before.bos_id());
  CHECK(after.eos_id() == before.eos_id());
  CHECK(after.unk_id() == before.unk_id());
  check_equal_ids(*written->tokenizer, *load_sentencepiece(original));
}

TEST_CASE("gguf tokenizer: OLMo's tokenizer encodes alike before and after", "[import]") {
  const fs::path original = shared_tokenizers() / "olmo-gpt-neox/tokenizer.json";
  if (!fs::exists(original)) DAGMOE_SKIP("no shared data at " + original.string());
  const Json document = read_json_file(original);
  std::vector<Token> tokens(document["model"]["vocab"].size());
  for (const auto& [text, id] : document["model"]["vocab"].items()) tokens[id.get<std::size_t>()].text = text;
  for (const Json& added : document["added_tokens"]) {
    tokens[added["id"].get<std::size_t>()].type = added["special"] == true ? kControl : kUserDefined;
  }
  const auto written = write(bpe("olmo", tokens, document["model"]["merges"].get<std::vector<std::string>>()));
  check_equal_ids(*written->tokenizer, *load_tokenizer_json(original));
}

TEST_CASE("gguf tokenizer: what is not supported is refused with its key", "[import]") {
  CHECK(error_of(tokenizer_of("bert", "default", kSmallBpe)) ==
        "metadata key 'tokenizer.ggml.model': found 'bert', supported: gpt2 (byte-level BPE), llama (sentencepiece)");
  CHECK_THAT(
      error_of(bpe("qwen35", kSmallBpe, {})),
      Catch::EndsWith("m.gguf: pre-tokenizer 'qwen35' is not known; known: gpt-2, smollm, olmo, qwen2, llama-bpe"));
  CHECK(error_of(tokenizer_of("gpt2", "gpt-2", kSmallBpe)) == "metadata key 'tokenizer.ggml.merges': is missing");
  CHECK(error_of(tokenizer_of("llama", "default", kSmallBpe)) == "metadata key 'tokenizer.ggml.scores': is missing");
  CHECK(error_of(bpe("gpt-2", kSmallBpe, {}), 3) ==
        "metadata key 'tokenizer.ggml.tokens': has 12 tokens, more than the vocabulary's 3");
  CHECK(error_of(bpe("gpt-2", {{"a", 7}}, {})) ==
        "metadata key 'tokenizer.ggml.token_type': token 0 has the unknown type 7");
  GgufBuilder builder = bpe("gpt-2", kSmallBpe, {});
  builder.add_u32("tokenizer.ggml.padding_token_id", 12);
  CHECK(error_of(builder) == "metadata key 'tokenizer.ggml.padding_token_id': found 12, expected one of the 12 tokens");
  builder = bpe("gpt-2", kSmallBpe, {});
  builder.add_bool("tokenizer.ggml.add_eos_token", true);
  CHECK(error_of(builder) ==
        "metadata key 'tokenizer.ggml.add_eos_token': an end token after every text is not supported");
  builder = pieces_by_score(small_sentencepiece());
  builder.add_i32s("tokenizer.ggml.precompiled_charsmap", {0});
  CHECK(error_of(builder) == "metadata key 'tokenizer.ggml.precompiled_charsmap': a normalizer is not supported");
  CHECK(error_of(pieces_by_score({{"<unk>", kUnknown}, {"a"}, {"a"}})) ==
        "tokenizer: token 2, 'a', has the text of another one");
  CHECK(error_of(pieces_by_score({{"<unk>", kUnknown}, {""}})) == "tokenizer: token 1 has no text");
}

TEST_CASE("gguf tokenizer: lists of another length than the tokens are refused", "[import]") {
  GgufBuilder builder;
  builder.add_text("tokenizer.ggml.model", "gpt2");
  builder.add_texts("tokenizer.ggml.tokens", {"a", "b"});
  builder.add_texts("tokenizer.ggml.merges", {});
  builder.add_i32s("tokenizer.ggml.token_type", {1});
  CHECK(error_of(builder) == "metadata key 'tokenizer.ggml.token_type': has 1 entries for 2 tokens");
  builder = tokenizer_of("llama", "default", {{"<unk>", kUnknown}, {"a"}});
  builder.add("tokenizer.ggml.scores", 9, raw<std::uint32_t>(6) + raw<std::uint64_t>(1) + raw(0.5f));
  CHECK(error_of(builder) == "metadata key 'tokenizer.ggml.scores': has 1 entries for 2 tokens");
}
