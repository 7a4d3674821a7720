#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <limits>
#include <map>
#include <random>

#include "base/error.h"
#include "data/bpe_model.h"
#include "data/unicode.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

using Ids = std::vector<TokenId>;

using Merges = std::vector<std::pair<std::string, std::string>>;

/// A document as read_tokenizer_json makes it: the byte alphabet as ids 0-255, then what the merges make.
struct Document {
  TokenizerJson json;
  explicit Document(const Merges& merges = {}) {
    json.where = "test.json";
    json.settings = Json::parse(R"({"normalizer": null, "added_tokens": [], "post_processor": null,
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
      "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "unk_token": null}})");
    for (int byte = 0; byte < 256; ++byte)
      json.tokens.push_back(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
    for (const auto& [left, right] : merges) {
      json.merges.emplace_back(to_byte_alphabet(left), to_byte_alphabet(right));
      json.tokens.push_back(to_byte_alphabet(left + right));
    }
  }
  TokenId add(const std::string& content, const Json& flags) {
    const auto id = static_cast<TokenId>(json.tokens.size() + json.settings["added_tokens"].size());
    Json token = flags;
    token["id"] = id;
    token["content"] = content;
    json.settings["added_tokens"].push_back(token);
    return id;
  }
  std::unique_ptr<Tokenizer> make(const TokenizerConfig& config = {}) const { return make_bpe_tokenizer(json, config); }
};

Ids bytes_as_ids(std::string_view text) {
  Ids ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string message_of(const Document& document) {
  try {
    document.make();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

const std::string kPool[] = {"a",      "B",      "z",          "s",      "S",      "t",       "re",     "'",
                             "'ll",    " ",      " ",          "  ",     "\t",     "\n",      "\r",     "\u00a0",
                             "\u0085", "\u2028", "\u3000",     "\u017f", "0",      "7",       "\u00bd", "\u0663",
                             ".",      "!",      "-",          "_",      "\u00e9", "e\u0301", "\u4e2d", "\u0915",
                             "\u093e", "\u200d", "\U0001F600", "\u180e", "\u00aa", "\u00b2"};

std::string random_text(std::mt19937& random, std::size_t max_parts) {
  std::string text;
  for (std::size_t n = random() % (max_parts + 1); n > 0; --n) text += kPool[random() % std::size(kPool)];
  return text;
}

}  // namespace

TEST_CASE("byte alphabet: GPT-2's characters, and every byte comes back", "[data]") {
  CHECK(to_byte_alphabet(" \n!~") == "\u0120\u010a!~");
  CHECK(to_byte_alphabet(std::string_view("\x00\x7f\xa0\xad\xff", 5)) == "\u0100\u0121\u0142\u0143\u00ff");
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  CHECK(from_byte_alphabet(to_byte_alphabet(all)) == all);
  CHECK_FALSE(from_byte_alphabet("a b"));
  CHECK_FALSE(from_byte_alphabet("\u0144"));
}

TEST_CASE("merges: the best rank first, then the leftmost", "[data]") {
  // 256 "ab", 257 "bc", 258 "abc", 259 "aa"
  const auto tokenizer = Document(Merges{{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"a", "a"}}).make();
  CHECK(tokenizer->encode("abc") == Ids{258});
  CHECK(tokenizer->encode("bc") == Ids{257});
  CHECK(tokenizer->encode("abbc") == Ids{256, 257});
  CHECK(tokenizer->encode("aaa") == Ids{259, 'a'});
  CHECK(tokenizer->encode("aab") == Ids{'a', 256});
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("merges: a token that no merges lead to is used only with ignore_merges", "[data]") {
  Document document(Merges{{"a", "b"}});
  document.json.tokens.push_back("xyz");  // id 257
  CHECK(document.make()->encode("xyz") == Ids{'x', 'y', 'z'});
  document.json.settings["model"]["ignore_merges"] = true;
  CHECK(document.make()->encode("xyz") == Ids{257});
}

TEST_CASE("merges: the heap for long pieces and the scan for short ones agree with the definition", "[data]") {
  const Merges merges = {{"a", "b"},  {"b", "a"},   {"ab", "ab"},  {"a", "a"},   {"b", "b"},
                         {"aa", "b"}, {"ba", "ba"}, {"abab", "a"}, {"bb", "aab"}};
  const auto tokenizer = Document(merges).make();
  const auto slowly = [&merges](const std::string& text) {
    std::vector<std::string> parts;
    for (const char c : text) parts.emplace_back(1, c);
    for (;;) {
      std::size_t best_rank = merges.size(), best = 0;
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = std::find(merges.begin(), merges.end(), std::pair(parts[i], parts[i + 1]));
        const auto rank = static_cast<std::size_t>(found - merges.begin());
        if (rank < best_rank) best_rank = rank, best = i;
      }
      if (best_rank == merges.size()) return parts;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  };
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (std::size_t n = 1 + random() % 200; n > 0; --n) text += random() % 2 ? 'a' : 'b';
    std::vector<std::string> parts;
    for (const TokenId id : tokenizer->encode(text)) parts.push_back(tokenizer->token_bytes(id));
    REQUIRE(parts == slowly(text));
  }
}

TEST_CASE("bytes without a token: dropped and counted, neighbours merge, an unknown token takes their place",
          "[data]") {
  Document document(Merges{{"a", "b"}});
  document.json.tokens[4].clear();
  const auto tokenizer = document.make();
  CHECK(tokenizer->encode("a\x04\x04"
                          "b") == Ids{'a', 'b'});  // the regex splits them first
  CHECK(tokenizer->encode("\x04!\x04") == Ids{'!'});
  CHECK(tokenizer->count_lost_bytes("a\x04\x04 b") == 2);
  CHECK(tokenizer->count_lost_bytes("ab") == 0);
  CHECK_THAT(tokenizer->description(), Catch::Contains("1 byte values without a token"));

  document.json.tokens.push_back("[UNK]");
  document.json.settings["model"]["unk_token"] = "[UNK]";
  CHECK(document.make()->encode("!\x04\x04!") == Ids{'!', 257, 257, '!'});
  document.json.settings["model"]["fuse_unk"] = true;
  CHECK(document.make()->encode("!\x04\x04!") == Ids{'!', 257, '!'});
}

TEST_CASE("added tokens: leftmost, then longest, control tokens only when asked for", "[data]") {
  Document document;
  const TokenId small = document.add("<|a", {{"special", true}});
  const TokenId large = document.add("<|a|>", {{"special", true}});
  const TokenId spaces = document.add("   ", {{"special", false}, {"normalized", true}});
  const auto tokenizer = document.make();
  CHECK(tokenizer->encode("<|a|><|a<|") == Ids{large, small, '<', '|'});
  CHECK(tokenizer->encode("<|a|>", {.parse_special = false}) == bytes_as_ids("<|a|>"));
  CHECK(tokenizer->encode("x    y", {.parse_special = false}) == Ids{'x', spaces, ' ', 'y'});
  CHECK(tokenizer->decode(Ids{'x', large, spaces, 'y'}) == "x   y");
  CHECK(tokenizer->decode(Ids{'x', large, 'y'}, true) == "x<|a|>y");
  CHECK(tokenizer->id_of("<|a|>") == large);
  CHECK(tokenizer->vocab_size() == 259);
  CHECK_FALSE(tokenizer->id_of("<|b|>"));
}

TEST_CASE("added tokens: lstrip, rstrip and single_word", "[data]") {
  Document document;
  const TokenId strip = document.add("<m>", {{"special", true}, {"lstrip", true}, {"rstrip", true}});
  const TokenId word = document.add("cat", {{"single_word", true}});
  const auto tokenizer = document.make();
  CHECK(tokenizer->encode("a \n<m>\u3000 b") == Ids{'a', strip, 'b'});
  CHECK(tokenizer->encode("cat-cat cats") == Ids{word, '-', word, ' ', 'c', 'a', 't', 's'});
  CHECK(tokenizer->encode("_cat") == bytes_as_ids("_cat"));
}

TEST_CASE("ids that are out of range decode to nothing, broken UTF-8 to U+FFFD", "[data]") {
  const auto tokenizer = Document().make();
  CHECK(tokenizer->decode(Ids{-1, 'a', 5000}) == "a");
  CHECK(tokenizer->decode(Ids{0xC3, 'a', 0xE4, 0xB8}) == "\uFFFDa\uFFFD");
  CHECK(tokenizer->token_bytes(0xC3) == "\xC3");
  CHECK(tokenizer->token_bytes(5000).empty());
}

TEST_CASE("pre-tokenizers: pieces of the three known expressions, by hand", "[data]") {
  const auto pieces_of = [](const auto& split) {
    Pieces pieces;
    split(pieces);
    return std::vector<std::string>(pieces.begin(), pieces.end());
  };
  using Strings = std::vector<std::string>;
  CHECK(pieces_of([](Pieces& p) { split_gpt2("Hi  there\n\n it's don'T 12a!?\t ", p); }) ==
        Strings{"Hi", " ", " there", "\n\n", " it", "'s", " don", "'", "T", " 12", "a", "!?", "\t "});
  CHECK(pieces_of([](Pieces& p) { split_gpt2("'rex 'll", p); }) == Strings{"'re", "x", " '", "ll"});
  CHECK(pieces_of([](Pieces& p) { split_qwen2("I'LL go!\n\n  x\t(y) 123", 1, p); }) ==
        Strings{"I", "'LL", " go", "!\n\n", " ", " x", "\t", "(y", ")", " ", "1", "2", "3"});
  CHECK(pieces_of([](Pieces& p) { split_qwen2("12345 \n \n z", 3, p); }) == Strings{"123", "45", " \n \n", " z"});
  CHECK(pieces_of([](Pieces& p) { split_digits("a12 \u00bdb", p); }) == Strings{"a", "1", "2", " ", "\u00bd", "b"});
}

TEST_CASE("pre-tokenizers: the hand-written code agrees with PCRE2", "[data]") {
  const RegexSplitter gpt2(kGpt2Regex, "test"), qwen2(kQwen2Regex, "test"), llama3(kLlama3Regex, "test");
  std::mt19937 random(11);
  for (int round = 0; round < 4000; ++round) {
    const std::string text = random_text(random, 30);
    CAPTURE(text);
    Pieces fast, slow;
    split_gpt2(text, fast), gpt2.split(text, slow);
    REQUIRE(fast == slow);
    fast.clear(), slow.clear();
    split_qwen2(text, 1, fast), qwen2.split(text, slow);
    REQUIRE(fast == slow);
    fast.clear(), slow.clear();
    split_qwen2(text, 3, fast), llama3.split(text, slow);
    REQUIRE(fast == slow);
  }
}

TEST_CASE("pre-tokenizers: a whole tokenizer on the regex route gives the same ids", "[data]") {
  Document document(Merges{{"a", "B"}, {" ", "a"}});
  document.json.settings["pre_tokenizer"] = Json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]})");
  const auto fast = document.make();
  const auto slow = make_bpe_tokenizer(document.json, {}, PreTokenizer::Route::kRegexOnly);
  CHECK_THAT(fast->description(), Catch::StartsWith("byte-level BPE, pre-tokenizer digits + gpt2, 258 tokens"));
  std::mt19937 random(3);
  for (int round = 0; round < 1000; ++round) {
    const std::string text = random_text(random, 40);
    REQUIRE(fast->encode(text) == slow->encode(text));
    REQUIRE(fast->decode(fast->encode(text)) == text);
  }
}

TEST_CASE("bytes that are no UTF-8 are encoded as U+FFFD, every maximal piece one", "[data]") {
  const auto tokenizer = Document(Merges{{"a", "b"}}).make();
  CHECK(tokenizer->encode("a\xFF\x80"
                          "b\xE4\xB8") == bytes_as_ids("a\uFFFD\uFFFDb\uFFFD"));
  std::mt19937 random(17);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (std::size_t n = random() % 40; n > 0; --n) text += static_cast<char>(random() % 256);
    std::string bytes;
    for (const TokenId id : tokenizer->encode(text)) bytes += tokenizer->token_bytes(id);
    REQUIRE(bytes == replace_invalid_utf8(text));
    REQUIRE(tokenizer->decode(tokenizer->encode(text)) == bytes);
  }
}

TEST_CASE("regular expressions: Oniguruma's spelling becomes PCRE2's, or is refused", "[data]") {
  CHECK(onig_to_pcre2(R"(\s+|[^\s\w]\S)", "x") ==
        R"(\p{White_Space}+|[^\p{White_Space}\p{L}\p{M}\p{N}\p{Pc}]\P{White_Space})");
  for (const char* pattern :
       {R"(\h)", R"(\bx)", R"(\W)", R"([a&&b])", R"([a[b]])", R"(a{2}+)", R"((?m:.))", R"((?i-m)x)"}) {
    CHECK_THROWS_AS(onig_to_pcre2(pattern, "x"), InputError);
  }
  CHECK_THROWS_WITH(RegexSplitter("(a", "test.json"),
                    Catch::StartsWith("test.json: regular expression '(a' cannot be read: "));
  Pieces pieces;
  RegexSplitter(R"(xx|\s+$)", "test").split("axxb \nc", pieces);  // $ stands at every line
  CHECK(pieces == Pieces{"a", "xx", "b", " ", "\nc"});
  pieces.clear();
  RegexSplitter("x*", "test").split("axxb\u00e9", pieces);  // empty matches split, too
  CHECK(pieces == Pieces{"a", "xx", "b", "\u00e9"});
}

TEST_CASE("normalizer NFC: composed before anything else, added tokens outside of it", "[data]") {
  Document document;
  document.json.settings["normalizer"] = {{"type", "NFC"}};
  const TokenId token = document.add("e\u0301!", {{"special", true}, {"normalized", false}});
  const auto tokenizer = document.make();
  CHECK(tokenizer->encode("e\u0301") == bytes_as_ids("\u00e9"));
  CHECK(tokenizer->encode("e\u0301!e\u0301") == Ids{token, 0xC3, 0xA9});
  CHECK(tokenizer->encode("\u1112\u1161\u11ab") == bytes_as_ids("\ud55c"));
  CHECK(tokenizer->encode("caf\u00e9") == bytes_as_ids("caf\u00e9"));
  CHECK_THAT(tokenizer->description(), Catch::Contains("NFC"));
}

TEST_CASE("post-processor: a template puts BOS first, by name", "[data]") {
  Document document;
  const TokenId bos = document.add("<s>", {{"special", true}});
  CHECK_FALSE(document.make()->adds_bos());
  document.json.settings["post_processor"] = Json::parse(R"({"type": "Sequence", "processors": [{"type": "ByteLevel"},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]})");
  const auto tokenizer = document.make();
  CHECK(tokenizer->adds_bos());
  CHECK(tokenizer->bos_id() == bos);
  CHECK(tokenizer->encode("a") == Ids{'a'});
  CHECK(tokenizer->encode("a", {.add_bos = true}) == Ids{bos, 'a'});
  CHECK_FALSE(tokenizer->eos_id());
}

TEST_CASE("what is not known is refused with its name", "[data]") {
  const auto with = [](const char* part, const char* json) {
    Document document;
    document.json.settings[part] = Json::parse(json);
    return message_of(document);
  };
  CHECK(with("normalizer", R"({"type": "NFKC"})") ==
        "test.json: normalizer: type 'NFKC' is not known; known: NFC, Prepend, Replace, or none");
  CHECK(with("pre_tokenizer", R"({"type": "Whitespace"})") ==
        "test.json: pre_tokenizer: type 'Whitespace' is not known; known: ByteLevel, Digits, Split, Sequence");
  CHECK_THAT(with("pre_tokenizer", "null"), Catch::StartsWith("test.json: pre_tokenizer: there is none"));
  CHECK_THAT(with("pre_tokenizer", R"({"type": "ByteLevel", "add_prefix_space": true})"),
             Catch::Contains("add_prefix_space"));
  CHECK_THAT(with("pre_tokenizer", R"({"type": "Digits", "individual_digits": true})"),
             Catch::Contains("no step 'ByteLevel'"));
  CHECK_THAT(with("pre_tokenizer", R"({"type": "Digits", "individual_digits": false})"),
             Catch::Contains("individual_digits"));
  CHECK_THAT(with("pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed"})"),
             Catch::Contains("'Removed'"));
  CHECK_THAT(with("pre_tokenizer", R"({"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated"})"),
             Catch::Contains("'Regex'"));
  CHECK_THAT(with("post_processor", R"({"type": "BertProcessing"})"),
             Catch::Contains("type 'BertProcessing' is not known"));
  CHECK_THAT(
      with(
          "post_processor",
          R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"SpecialToken": {"id": "b"}}]})"),
      Catch::Contains("more than one token before the text"));
  CHECK_THAT(with("decoder", R"({"type": "WordPiece"})"), Catch::Contains("decoder: expected type 'ByteLevel'"));
  CHECK_THAT(with("model", R"({"type": "WordPiece"})"), Catch::Contains("type 'WordPiece' is not known; known: BPE"));
  CHECK_THAT(with("model", R"({"type": "BPE", "end_of_word_suffix": "</w>"})"),
             Catch::Contains("'end_of_word_suffix'"));
  CHECK_THAT(with("model", R"({"type": "BPE", "dropout": 0.1})"), Catch::Contains("'dropout'"));
  CHECK_THAT(with("model", R"({"type": "BPE", "byte_fallback": true})"), Catch::Contains("'byte_fallback'"));
  CHECK_THAT(with("model", R"({"type": "BPE", "unk_token": "?!"})"),
             Catch::Contains("unk_token '?!' is not in the vocabulary"));
  CHECK_THAT(with("added_tokens", R"([{"id": 97, "content": "b"}])"),
             Catch::Contains("added token 'b' has id 97, but the vocabulary says 98"));
  CHECK_THAT(with("added_tokens", R"([{"id": 2000000000, "content": "b"}])"), Catch::Contains("out of range"));

  Document merges(Merges{{"a", "b"}});
  merges.json.merges.emplace_back("ab", "q");
  CHECK(message_of(merges) == "test.json: merge 2 ('ab' + 'q'): 'abq' is not in the vocabulary");
  Document twice;
  twice.json.tokens.push_back("a");
  CHECK(message_of(twice) == "test.json: token 'a' has two ids, 97 and 256");
}
