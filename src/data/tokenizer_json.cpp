#include "data/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"

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

void read_vocabulary(const Object& vocabulary, TokenizerJson& document) {
  const std::string where = document.where + ": model.vocab";
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

std::pair<std::string, std::string> read_merge(const Element& merge, const std::string& where) {
  if (std::string_view text; merge.get(text) == simdjson::SUCCESS) {
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return {std::string(text.substr(0, space)), std::string(text.substr(space + 1))};
    }
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
      read_vocabulary(vocabulary, document);
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

}  // namespace

TokenizerJson read_tokenizer_json(const std::filesystem::path& path) {
  TokenizerJson document;
  document.where = path.string();
  const auto file = MappedFile::open(path);
  const std::string_view text = file->text();
  simdjson::dom::parser parser;
  Element root;
  // An empty file has no bytes to point at, which simdjson's memcpy does not like.
  const auto error = text.empty() ? simdjson::EMPTY : parser.parse(text.data(), text.size()).get(root);
  if (error) {
    parse_json(text, document.where);  // knows line and column
    throw InputError(str(document.where, ": broken JSON: ", simdjson::error_message(error)));
  }
  Object object;
  if (root.get(object) != simdjson::SUCCESS) throw InputError(document.where + ": found no JSON object");
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

}  // namespace dagmoe
