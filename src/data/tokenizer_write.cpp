// The writer of tokenizer files; see write_tokenizer_files in tokenizer.h.
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/byte_bpe_split.h"
#include "data/tokenizer.h"

namespace dagmoe {

namespace {

/// A JSON string. Documents with a hundred thousand of them are written as text: building a Json first takes far
/// longer.
void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view kHexDigits = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHexDigits[byte >> 4];
      out += kHexDigits[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

constexpr std::string_view kByteLevel =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
constexpr std::string_view kByteLevelAlone =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false})";

/// The parts of a tokenizer.json that a pre-tokenizer's name stands for (contracts.md 3.1).
struct Pipeline {
  std::string pre_tokenizer, normalizer = "null";
  bool ignore_merges = false;  ///< a piece that is in the vocabulary is one token whatever the merges say
};

std::string split_json(std::string_view regex) {
  std::string json = R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)";
  append_json_string(json, regex);
  return str(json, R"(},"behavior":"Isolated","invert":false},)", kByteLevelAlone, "]}");
}

Pipeline pipeline_of(const BpeVocabulary& vocabulary) {
  const std::string& name = vocabulary.pre_tokenizer;
  const std::string nfc = R"({"type":"NFC"})";
  if (name == "gpt-2") return {.pre_tokenizer = std::string(kByteLevel)};
  if (name == "olmo") return {.pre_tokenizer = std::string(kByteLevel), .normalizer = nfc};
  if (name == "smollm") {
    return {.pre_tokenizer = str(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)",
                                 kByteLevel, "]}")};
  }
  if (name == "qwen2") return {.pre_tokenizer = split_json(kQwen2Regex), .normalizer = nfc};
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") {
    return {.pre_tokenizer = split_json(kLlama3Regex), .ignore_merges = true};
  }
  throw InputError(str(vocabulary.where, ": pre-tokenizer ", quoted_for_message(name),
                       " is not known; known: gpt-2, smollm, olmo, qwen2, llama-bpe"));
}

/// Text of a token by id. Throws InputError when the vocabulary has no such id.
const std::string& token_text(const BpeVocabulary& vocabulary, TokenId id, std::string_view role) {
  if (id < 0 || static_cast<std::size_t>(id) >= vocabulary.tokens.size()) {
    throw InputError(str(vocabulary.where, ": ", role, " token id ", id, " is outside the vocabulary of ",
                         vocabulary.tokens.size(), " tokens"));
  }
  return vocabulary.tokens[static_cast<std::size_t>(id)];
}

void append_added_tokens(std::string& out, const BpeVocabulary& vocabulary) {
  out += "[";
  const auto append = [&](TokenId id, std::string_view special) {
    if (out.back() != '[') out += ',';
    out += str("\n{\"id\":", id, ",\"content\":");
    append_json_string(out, token_text(vocabulary, id, "added"));
    out += str(R"(,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":)", special, "}");
  };
  // transformers takes ids that are no model tokens in ascending order only.
  std::map<TokenId, std::string_view> tokens;
  for (const TokenId id : vocabulary.special_ids) tokens[id] = "true";
  for (const TokenId id : vocabulary.user_defined_ids) tokens[id] = "false";
  for (const auto& [id, special] : tokens) append(id, special);
  out += "]";
}

/// BOS before the text when the vocabulary asks for it, else null.
void append_post_processor(std::string& out, const BpeVocabulary& vocabulary) {
  if (!vocabulary.add_bos) {
    out += "null";
    return;
  }
  if (!vocabulary.bos) throw InputError(vocabulary.where + ": BOS is to be added, but there is no BOS token");
  std::string bos;
  append_json_string(bos, token_text(vocabulary, *vocabulary.bos, "BOS"));
  const auto special = [&bos](int type_id) {
    return str(R"({"SpecialToken":{"id":)", bos, R"(,"type_id":)", type_id, "}}");
  };
  const auto sequence = [](std::string_view name, int type_id) {
    return str(R"({"Sequence":{"id":")", name, R"(","type_id":)", type_id, "}}");
  };
  out += str(R"({"type":"TemplateProcessing","single":[)", special(0), ",", sequence("A", 0), R"(],"pair":[)",
             special(0), ",", sequence("A", 0), ",", special(1), ",", sequence("B", 1), R"(],"special_tokens":{)", bos,
             R"(:{"id":)", bos, R"(,"ids":[)", *vocabulary.bos, R"(],"tokens":[)", bos, "]}}}");
}

void append_model(std::string& out, const BpeVocabulary& vocabulary, const Pipeline& pipeline) {
  out += R"({"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,)"
         R"("fuse_unk":false,"byte_fallback":false,"ignore_merges":)";
  out += pipeline.ignore_merges ? "true" : "false";
  out += ",\"vocab\":{";
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (i > 0) out += ',';
    append_json_string(out, vocabulary.tokens[i]);
    out += ':';
    out += std::to_string(i);
  }
  out += "},\"merges\":[";
  for (std::size_t i = 0; i < vocabulary.merges.size(); ++i) {
    if (i > 0) out += ',';
    append_json_string(out, vocabulary.merges[i]);
  }
  out += "]}";
}

std::string tokenizer_json(const BpeVocabulary& vocabulary) {
  constexpr std::size_t kBytesPerEntry = 24;  // a guess; saves most growing
  const Pipeline pipeline = pipeline_of(vocabulary);
  std::string out;
  out.reserve((vocabulary.tokens.size() + vocabulary.merges.size()) * kBytesPerEntry);
  out += "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n\"added_tokens\":";
  append_added_tokens(out, vocabulary);
  out += str(",\n\"normalizer\":", pipeline.normalizer, ",\n\"pre_tokenizer\":", pipeline.pre_tokenizer,
             ",\n\"post_processor\":");
  append_post_processor(out, vocabulary);
  out += str(",\n\"decoder\":", kByteLevel, ",\n\"model\":");
  append_model(out, vocabulary, pipeline);
  out += "}\n";
  return out;
}

/// "bos_token", "eos_token", ... of those that the vocabulary has.
Json special_tokens_map(const BpeVocabulary& vocabulary) {
  Json map = Json::object();
  const auto name = [&](const char* key, const std::optional<TokenId>& id) {
    if (id) map[key] = token_text(vocabulary, *id, key);
  };
  name("bos_token", vocabulary.bos);
  name("eos_token", vocabulary.eos);
  name("unk_token", vocabulary.unk);
  name("pad_token", vocabulary.pad);
  return map;
}

Json tokenizer_config(const BpeVocabulary& vocabulary) {
  Json config = special_tokens_map(vocabulary);
  config["add_bos_token"] = vocabulary.add_bos;
  config["clean_up_tokenization_spaces"] = false;
  if (vocabulary.max_length > 0) config["model_max_length"] = vocabulary.max_length;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  if (!vocabulary.chat_template.empty()) config["chat_template"] = vocabulary.chat_template;
  return config;
}

void check_tokens(const BpeVocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.tokens[i].empty()) throw InputError(str(vocabulary.where, ": token ", i, " has no text"));
    if (!is_valid_utf8(vocabulary.tokens[i]))
      throw InputError(str(vocabulary.where, ": token ", i, " is not valid UTF-8"));
  }
  for (std::size_t i = 0; i < vocabulary.merges.size(); ++i) {
    if (!is_valid_utf8(vocabulary.merges[i]))
      throw InputError(str(vocabulary.where, ": merge ", i + 1, " is not valid UTF-8"));
  }
}

}  // namespace

void write_tokenizer_files(const std::filesystem::path& folder, const BpeVocabulary& vocabulary) {
  check_tokens(vocabulary);
  write_file_atomically(folder / "tokenizer.json", tokenizer_json(vocabulary));
  write_file_atomically(folder / "tokenizer_config.json", tokenizer_config(vocabulary).dump(2) + "\n");
  write_file_atomically(folder / "special_tokens_map.json", special_tokens_map(vocabulary).dump(2) + "\n");
  if (!vocabulary.chat_template.empty()) {
    write_file_atomically(folder / "chat_template.jinja", vocabulary.chat_template);
  }
}

}  // namespace dagmoe
