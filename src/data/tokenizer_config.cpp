#include "data/tokenizer_config.h"

#include <charconv>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {

namespace {

/// A token is a string or an object with "content".
void read_token(const Json& config, std::string_view key, const std::string& where, std::optional<std::string>& token) {
  const auto found = config.find(key);
  if (token || found == config.end() || found->is_null()) return;
  token = found->is_object() ? json_string(*found, "content", str(where, ": ", key)) : json_string(config, key, where);
}

void read_tokens(const Json& config, const std::string& where, TokenizerConfig& result) {
  read_token(config, "bos_token", where, result.bos);
  read_token(config, "eos_token", where, result.eos);
  read_token(config, "unk_token", where, result.unk);
  read_token(config, "pad_token", where, result.pad);
}

std::optional<bool> read_flag(const Json& config, std::string_view key, const std::string& where) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (!found->is_boolean()) throw InputError(str(where, ": '", key, "': expected true or false"));
  return found->get<bool>();
}

std::vector<AddedToken> read_added_tokens_decoder(const Json& config, const std::string& where) {
  std::vector<AddedToken> tokens;
  const auto decoder = config.find("added_tokens_decoder");
  if (decoder == config.end() || !decoder->is_object()) return tokens;
  for (const auto& [key, value] : decoder->items()) {
    TokenId id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0 || id > kMaxTokenId) {
      throw InputError(str(where, ": added_tokens_decoder: ", quoted_for_message(key), " is no token id"));
    }
    tokens.push_back(read_added_token(value, id, str(where, ": added_tokens_decoder: ", id)));
  }
  return tokens;
}

std::string read_chat_template(const Json& config, const std::string& where) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return {};
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (json_string(entry, "name", where) == "default") return json_string(entry, "template", where);
    }
  }
  throw InputError(str(where, ": 'chat_template': expected a text, or a list with one named 'default'"));
}

}  // namespace

TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder) {
  TokenizerConfig result;
  if (const auto path = folder / "tokenizer_config.json"; std::filesystem::exists(path)) {
    const Json config = read_json_file(path);
    if (!config.is_object()) throw InputError(path.string() + ": found no JSON object");
    read_tokens(config, path.string(), result);
    if (const auto found = config.find("tokenizer_class"); found != config.end() && !found->is_null()) {
      result.tokenizer_class = json_string(config, "tokenizer_class", path.string());
    }
    result.add_prefix_space = read_flag(config, "add_prefix_space", path.string());
    result.add_bos = read_flag(config, "add_bos_token", path.string());
    result.add_eos = read_flag(config, "add_eos_token", path.string());
    result.legacy = read_flag(config, "legacy", path.string());
    result.added_tokens = read_added_tokens_decoder(config, path.string());
    result.chat_template = read_chat_template(config, path.string());
  }
  if (const auto path = folder / "special_tokens_map.json"; std::filesystem::exists(path)) {
    const Json map = read_json_file(path);
    if (!map.is_object()) throw InputError(path.string() + ": found no JSON object");
    read_tokens(map, path.string(), result);
  }
  return result;
}

}  // namespace dagmoe
