#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/json.h"
#include "data/bpe_tokenizer.h"
#include "data/example.h"
#include "data/metaspace.h"
#include "data/unigram_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

using namespace dagmoe;

namespace {

using Ids = std::vector<TokenId>;
namespace fs = std::filesystem;

const std::string kGolden = DAGMOE_SOURCE_DIR "/tests/golden/";

const Json& golden() {
  static const Json json = read_json_file(kGolden + "small_tokenizers.json");
  return json;
}

/// A tokenizer.json with some of its parts changed; "model.x" is a member of the model.
TokenizerJson changed(const std::string& file, const Json& changes) {
  TokenizerJson document = read_tokenizer_json(kGolden + "small_tokenizers/" + file);
  for (const auto& [key, value] : changes.items()) {
    const std::string model = "model.";
    if (key.starts_with(model)) {
      document.settings["model"][key.substr(model.size())] = value;
    } else {
      document.settings[key] = value;
    }
  }
  return document;
}

void check_variants(const char* kind) {
  for (const auto& [name, variant] : golden()[kind].items()) {
    const auto tokenizer = make_bpe_tokenizer(changed(kind + std::string(".json"), variant["changes"]), {});
    for (std::size_t i = 0; i < golden()["texts"].size(); ++i) {
      const auto text = golden()["texts"][i].get<std::string>();
      CAPTURE(name, text);
      CHECK(tokenizer->encode(text) == variant["ids"][i].get<Ids>());
    }
    CAPTURE(name);
    CHECK(tokenizer->encode("the king", {.add_bos = tokenizer->adds_bos(), .add_eos = tokenizer->adds_eos()}) ==
          variant["framed"].get<Ids>());
  }
}

std::unique_ptr<Tokenizer> chars(const Json& changes, const TokenizerConfig& config = {}) {
  return make_bpe_tokenizer(changed("chars.json", changes), config);
}

Json metaspace(const char* scheme) {
  return {{"pre_tokenizer", {{"type", "Metaspace"}, {"prepend_scheme", scheme}, {"split", false}}}};
}

std::string message_of(const Json& changes) {
  try {
    chars(changes);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("byte-level BPE: the ids of every family's pre-tokenizer", "[data]") {
  CHECK(golden()["bytes"].size() == 7);
  check_variants("bytes");
}

TEST_CASE("BPE of characters: the ids of the fast files of Llama-2 and Mistral, and of rarer options", "[data]") {
  CHECK(golden()["chars"].size() == 8);
  check_variants("chars");
}

TEST_CASE("unigram: the ids of sentencepiece, whatever version the library is", "[data]") {
  const auto tokenizer = load_sentencepiece(kGolden + "small_tokenizers/unigram.model");
  const Json& unigram = golden()["unigram"];
  for (std::size_t i = 0; i < unigram["texts"].size(); ++i) {
    const auto text = unigram["texts"][i].get<std::string>();
    CAPTURE(text);
    CHECK(tokenizer->encode(text, {.parse_special = false}) == unigram["ids"][i].get<Ids>());
  }
}

TEST_CASE("unigram: of equal sums the path that was found first, and bytes for the unknown", "[data]") {
  using Type = SentencePiece::Type;
  SentencePieceFile file;
  file.pieces = {{.text = "<unk>", .type = Type::kUnknown},
                 {.text = "a", .score = -1.0F},
                 {.text = "aa", .score = -2.0F},
                 {.text = "b", .score = -3.0F},
                 {.text = "c", .score = -3.0F, .type = Type::kUnused}};
  const auto encode = [](const SentencePieceFile& parts, std::string_view text) {
    Ids ids;
    UnigramModel(parts).append(text, ids);
    return ids;
  };
  CHECK(encode(file, "aab") == Ids{2, 3});  // "a" + "a" costs the same
  CHECK(encode(file, "bxycb") == Ids{3, 0, 3});
  CHECK(encode(file, "").empty());
  file.byte_fallback = true;
  CHECK(encode(file, "x") == Ids{0});  // no bytes in the vocabulary
  file.pieces.push_back({.text = "<0x78>", .type = Type::kByte});
  CHECK(encode(file, "xx") == Ids{5, 5});
  CHECK(encode(file, "xy") == Ids{0});
  file.pieces.push_back({.text = "bb", .score = 0.0F, .type = Type::kUserDefined});
  CHECK(encode(file, "abb") == Ids{1, 6});
}

TEST_CASE("sentencepiece files: a protocol buffer that is cut or of another kind is refused", "[data]") {
  for (const std::string_view bytes :
       {std::string_view("\x0A\x05xy"), std::string_view("\x0A"), std::string_view("\x0F"),
        std::string_view("\x0A\x02\x15\x01"), std::string_view("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF")}) {
    CHECK_THROWS_WITH(read_sentencepiece_file(bytes, "x.model"),
                      Catch::StartsWith("x.model: is no sentencepiece model"));
  }
}

TEST_CASE("text that is no UTF-8: every kind of tokenizer sees U+FFFD for each maximal invalid piece", "[data]") {
  const std::string broken = "the \xFF\x80king\xE4\xB8 \xED\xA0\x80",
                    repaired = "the \uFFFD\uFFFDking\uFFFD \uFFFD\uFFFD\uFFFD";
  const std::string folder = kGolden + "small_tokenizers/";
  const std::unique_ptr<Tokenizer> tokenizers[] = {load_tokenizer_json(folder + "bytes.json"),
                                                   chars(metaspace("always")),
                                                   load_sentencepiece(folder + "unigram.model")};
  for (const auto& tokenizer : tokenizers) CHECK(tokenizer->encode(broken) == tokenizer->encode(repaired));
}

TEST_CASE("BPE of characters: decoding gives bytes and spaces back, without the first space", "[data]") {
  for (const char* scheme : {"always", "first", "never"}) {
    const auto tokenizer = chars(metaspace(scheme));
    CAPTURE(scheme);
    for (const std::string text : {"the king", "x\u4f60\U0001f600\n", "a  b"}) {
      CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    }
  }
  const auto tokenizer = chars(metaspace("first"));
  CHECK(tokenizer->decode(tokenizer->encode("</s>the")) == "the");
  CHECK(tokenizer->decode(tokenizer->encode("</s>the"), true) == "</s>the");
  CHECK(tokenizer->token_bytes(tokenizer->encode("\n").back()) == "\n");
  CHECK(tokenizer->token_bytes(*tokenizer->id_of("\u2581the")) == " the");
  CHECK(tokenizer->id_of("<0x0A>") == 13);
  CHECK(tokenizer->count_lost_bytes("\u4f60 \x04") == 0);
  CHECK(chars({{"pre_tokenizer", metaspace("always")["pre_tokenizer"]}, {"model.byte_fallback", false}})
            ->count_lost_bytes("the \u4f60") == 3);
  CHECK(tokenizer->description() == "BPE of characters, leading space before the first stretch, 800 tokens");
}

TEST_CASE("BPE of characters: the leading space of text that continues, and of text behind a control token", "[data]") {
  const Ids the = chars(metaspace("never"))->encode("the"), spaced = {*chars({})->id_of("\u2581the")};
  const Json normalizer = golden()["chars"]["normalizer"]["changes"];
  for (const auto& [changes, after_control] :
       {std::pair(metaspace("always"), spaced), std::pair(metaspace("first"), the), std::pair(normalizer, spaced)}) {
    const auto tokenizer = chars(changes);
    CHECK(tokenizer->encode("the") == spaced);
    CHECK(tokenizer->encode("the", {.continues = true}) == the);
    CHECK(tokenizer->encode("the", {.after_control = true}) == after_control);
    Ids with_control = {2};
    with_control.insert(with_control.end(), after_control.begin(), after_control.end());
    CHECK(tokenizer->encode("</s>the", {.continues = true}) == with_control);
  }
}

TEST_CASE("chat samples: piece by piece gives the ids of the whole text, whatever the rule for spaces", "[data]") {
  const std::vector<Message> messages = {{"system", "Speak, the king."},
                                         {"user", "What is it? "},
                                         {"assistant", "the"},
                                         {"user", "And\n now"},
                                         {"assistant", "No more"}};
  const Json normalizer = golden()["chars"]["normalizer"]["changes"];
  for (const Json& changes : {metaspace("always"), metaspace("first"), metaspace("never"), normalizer}) {
    const auto tokenizer = chars(changes);
    for (const char* name : {"llama-2", "mistral", "mistral-plain", "mistral-v0.1", "mistral-v3", "mistral-nemo"}) {
      CAPTURE(name, changes.dump());
      const bool knows_system = std::string(name) != "mistral-plain" && std::string(name) != "mistral-v0.1";
      const std::vector<Message> turns(messages.begin() + (knows_system ? 0 : 1), messages.end());
      const auto pieces = render_chat(chat_format(*prompt_template_named(name)), turns, false);
      std::string whole;
      for (const PromptPiece& piece : pieces) whole += piece.text;
      CHECK(make_example(*tokenizer, pieces, 1000).tokens == tokenizer->encode(whole));
    }
  }
}

TEST_CASE("BPE of characters: text may be cut before words only when no token goes beyond one", "[data]") {
  TokenizerJson document = changed("chars.json", metaspace("never"));
  const auto ids_of = [&] { return make_bpe_tokenizer(document, {})->encode("a b"); };
  CHECK(ids_of().size() == 2);
  document.merges.insert(document.merges.begin(), {"a", "\u2581"});
  document.tokens.push_back("a\u2581");
  CHECK(ids_of() == Ids{800, *make_bpe_tokenizer(document, {})->id_of("b")});
}

TEST_CASE("BOS and EOS: the post-processor, or the flags where Llama's class has no template", "[data]") {
  const auto frame = [](const Json& changes, const TokenizerConfig& config) {
    const auto tokenizer = chars(changes, config);
    return std::pair(tokenizer->adds_bos(), tokenizer->adds_eos());
  };
  Json changes = metaspace("always");
  TokenizerConfig config;
  config.bos = "<s>", config.eos = "</s>", config.add_bos = true;
  CHECK(frame(changes, config) == std::pair(false, false));  // a warning, and the file as it is
  config.tokenizer_class = "LlamaTokenizerFast";             // DeepSeek-V2
  CHECK(frame(changes, config) == std::pair(true, false));
  config.add_bos = false, config.add_eos = true;
  CHECK(frame(changes, config) == std::pair(false, true));
  changes["post_processor"] = golden()["chars"]["normalizer"]["changes"]["post_processor"];
  CHECK(frame(changes, config) == std::pair(true, false));
  config.bos = "</s>";
  CHECK_THROWS_WITH(chars(changes, config), Catch::Contains("puts '<s>' there, but bos_token is '</s>'"));
}

TEST_CASE("BPE of characters: what is not known is refused with its name", "[data]") {
  CHECK_THAT(message_of({{"pre_tokenizer", {{"type", "Whitespace"}}}}),
             Catch::Contains("pre_tokenizer: type 'Whitespace' is not known here; known: one Metaspace, or none"));
  CHECK_THAT(message_of({{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}}}}),
             Catch::Contains("replacement '_' is not supported"));
  CHECK_THAT(message_of({{"normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", " "}}}, {"content", "_"}}}}),
             Catch::Contains("normalizer: 'Replace' is known with a pattern 'String' only"));
  CHECK_THAT(message_of({{"decoder", {{"type", "WordPiece"}}}}), Catch::Contains("decoder: type 'WordPiece' is not"));
  CHECK_THAT(message_of({{"decoder", nullptr}}), Catch::Contains("decoder: expected type 'ByteLevel', 'Metaspace'"));
  CHECK_THAT(message_of({{"model.type", "Unigram"}}), Catch::Contains("put the tokenizer.model beside it"));
}

TEST_CASE("vocab.json and merges.txt: read by the class that tokenizer_config.json names", "[data]") {
  const TextFile config("tokenizer_config.json", R"({"tokenizer_class": "GPT2Tokenizer"})");
  const fs::path folder = config.path().parent_path();
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(folder / name) << text; };
  write("vocab.json", R"({"a": 0, "b": 1, "1": 2, "2": 3, "ab": 4, "12": 5, "<|endoftext|>": 6})");
  write("merges.txt", "#version: 0.2\na b\r\n1 2\n\n");
  auto tokenizer = load_tokenizer(folder);
  CHECK(tokenizer->encode("ab12<|endoftext|>") == Ids{4, 5, 6});
  CHECK(tokenizer->bos_id() == 6);
  CHECK(tokenizer->eos_id() == 6);
  write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"})");
  write("added_tokens.json", R"({"<|im_end|>": 7})");
  tokenizer = load_tokenizer(folder);
  CHECK(tokenizer->encode("ab12<|im_end|>") == Ids{4, 2, 3, 7});  // digits one by one
  CHECK_FALSE(tokenizer->bos_id());
  CHECK(tokenizer->eos_id() == 7);
  write("merges.txt", "a b\na b c\n");
  CHECK_THROWS_WITH(load_tokenizer(folder),
                    (folder / "merges.txt").string() + ":2: found 'a b c', expected two parts: a b");
  write("tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizer"})");
  CHECK_THROWS_WITH(load_tokenizer(folder),
                    Catch::Contains("found tokenizer_class 'RobertaTokenizer', expected GPT2Tokenizer or"));
}
