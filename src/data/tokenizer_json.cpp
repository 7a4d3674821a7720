#include "data/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/byte_bpe_split.h"
#include "data/tokenizer_config.h"

namespace dagmoe {

namespace {

using Element = simdjson::dom::element;
using Object = simdjson::dom::object;

constexpr std::int64_t kMaxGap = 1 << 16;

/// The value as it stands in the file, short and on one line.
std::string json_for_message(const Element& value) {
  const std::string quoted = quoted_for_message(simdjson::minify(value));
  return quoted.substr(1, quoted.size() - 2);
}

/// Throws when a key, which simdjson may give twice, is there already.
void check_is_new(std::string_view key, std::set<std::string_view>& keys, const std::string& where) {
  if (keys.insert(key).second) return;
  throw InputError(str(where, ": key ", quoted_for_message(key), " is given twice in one object"));
}

/// Appends a member without the search for an equal key.
void add_member(Json& object, std::string_view key, Json value) {
  static_cast<Json::object_t::Container&>(object.get_ref<Json::object_t&>()).emplace_back(key, std::move(value));
}

void read_vocabulary(const Object& vocabulary, const std::string& where, TokenizerJson& document) {
  // Ids have gaps, but one far beyond the others would ask for memory out of proportion to the file.
  const std::int64_t max_id = std::min(kMaxTokenId, kMaxGap + 4 * static_cast<std::int64_t>(vocabulary.size()));
  for (const auto [token, value] : vocabulary) {
    std::int64_t id = -1;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id > max_id) {
      throw InputError(str(where, ": token ", quoted_for_message(token), " has id ", json_for_message(value),
                           ", expected 0 to ", max_id));
    }
    if (token.empty()) throw InputError(str(where, ": id ", id, " has no text"));
    const auto index = static_cast<std::size_t>(id);
    if (index >= document.tokens.size()) document.tokens.resize(index + 1);
    if (!document.tokens[index].empty()) {
      throw InputError(str(where, ": id ", id, " belongs to both ", quoted_for_message(document.tokens[index]), " and ",
                           quoted_for_message(token)));
    }
    document.tokens[index] = token;
  }
}

/// "a b"; nullopt for anything but two parts.
std::optional<std::pair<std::string, std::string>> split_merge(std::string_view text) {
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) return std::nullopt;
  return std::pair(std::string(text.substr(0, space)), std::string(text.substr(space + 1)));
}

std::pair<std::string, std::string> read_merge(const Element& merge, const std::string& where) {
  if (std::string_view text; merge.get(text) == simdjson::SUCCESS) {
    if (auto parts = split_merge(text)) return *std::move(parts);
  } else if (simdjson::dom::array pair; merge.get(pair) == simdjson::SUCCESS && pair.size() == 2) {
    std::string_view left, right;
    if (pair.at(0).get(left) == simdjson::SUCCESS && pair.at(1).get(right) == simdjson::SUCCESS) {
      return {std::string(left), std::string(right)};
    }
  }
  throw InputError(str(where, ": found ", json_for_message(merge), ", expected \"a b\" or [\"a\", \"b\"]"));
}

void read_model(const Object& model, TokenizerJson& document) {
  Json settings = Json::object();
  std::set<std::string_view> keys;
  for (const auto [key, value] : model) {
    check_is_new(key, keys, document.where);
    Object vocabulary;
    simdjson::dom::array merges;
    if (key == "vocab" && value.get(vocabulary) == simdjson::SUCCESS) {
      read_vocabulary(vocabulary, document.where + ": model.vocab", document);
    } else if (key == "merges" && value.get(merges) == simdjson::SUCCESS) {
      document.merges.reserve(merges.size());
      for (const Element merge : merges) {
        document.merges.push_back(read_merge(merge, str(document.where, ": merge ", document.merges.size() + 1)));
      }
    } else if (key != "vocab" && key != "merges") {
      add_member(settings, key, parse_json(simdjson::minify(value), document.where));
    }
  }
  document.settings["model"] = std::move(settings);
}

/// The parts beside vocabulary and merges, by the class in tokenizer_config.json.
Json class_settings(const TokenizerConfig& config, const std::string& where) {
  const bool is_qwen = config.tokenizer_class == "Qwen2Tokenizer";
  if (!is_qwen && config.tokenizer_class != "GPT2Tokenizer") {
    throw InputError(str(where, ": vocab.json and merges.txt without tokenizer.json: found tokenizer_class '",
                         config.tokenizer_class, "', expected GPT2Tokenizer or Qwen2Tokenizer"));
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", config.add_prefix_space.value_or(false)}, {"use_regex", !is_qwen}};
  Json settings = {{"added_tokens", Json::array()}, {"pre_tokenizer", byte_level}, {"decoder", byte_level}};
  if (is_qwen) {
    const Json split = {{"type", "Split"}, {"pattern", {{"Regex", kQwen2Regex}}}, {"behavior", "Isolated"}};
    settings["normalizer"] = {{"type", "NFC"}};
    settings["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}};
  }
  settings["model"] = {{"type", "BPE"}};
  return settings;
}

/// Parses a file whose root is an object; the parser owns it.
Object parse_file(const std::filesystem::path& path, simdjson::dom::parser& parser) {
  const auto file = MappedFile::open(path);
  const std::string_view text = file->text();
  Element root;
  // An empty file has no bytes to point at, which simdjson's memcpy does not like.
  const auto error = text.empty() ? simdjson::EMPTY : parser.parse(text.data(), text.size()).get(root);
  if (error) {
    parse_json(text, path.string());  // knows line and column
    throw InputError(str(path.string(), ": broken JSON: ", simdjson::error_message(error)));
  }
  Object object;
  if (root.get(object) != simdjson::SUCCESS) throw InputError(path.string() + ": found no JSON object");
  return object;
}

}  // namespace

TokenizerJson read_tokenizer_json(const std::filesystem::path& path) {
  TokenizerJson document;
  document.where = path.string();
  simdjson::dom::parser parser;
  const Object object = parse_file(path, parser);
  document.settings = Json::object();
  std::set<std::string_view> keys;
  for (const auto [key, value] : object) {
    check_is_new(key, keys, document.where);
    Object model;
    if (key == "model" && value.get(model) == simdjson::SUCCESS) {
      read_model(model, document);
    } else {
      add_member(document.settings, key, parse_json(simdjson::minify(value), document.where));
    }
  }
  if (!document.settings.contains("model") || !document.settings["model"].is_object()) {
    throw InputError(document.where + ": 'model' is missing; is this a tokenizer.json?");
  }
  return document;
}

TokenizerJson read_vocab_and_merges(const std::filesystem::path& folder, const TokenizerConfig& config) {
  const auto vocab_file = folder / "vocab.json", merges_file = folder / "merges.txt";
  TokenizerJson document;
  document.where = vocab_file.string();
  document.settings = class_settings(config, folder.string());
  simdjson::dom::parser parser;
  read_vocabulary(parse_file(vocab_file, parser), document.where, document);
  const auto file = MappedFile::open(merges_file);
  std::size_t number = 0;
  for (std::string_view rest = file->text(); !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    auto merge = split_merge(line);
    if (!merge) {
      throw InputError(
          str(merges_file.string(), ":", number, ": found ", quoted_for_message(line), ", expected two parts: a b"));
    }
    document.merges.push_back(*std::move(merge));
  }
  if (const auto path = folder / "added_tokens.json"; std::filesystem::exists(path)) {
    const Json added = read_json_file(path);
    for (const auto& [content, id] : added.items()) {
      document.settings["added_tokens"].push_back({{"id", id}, {"content", content}, {"special", true}});
    }
  }
  return document;
}

}  // namespace dagmoe
