#include "data/byte_bpe.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "data/byte_bpe_model.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

const Json* find_part(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

bool model_flag(const Json& model, std::string_view key) {
  const Json* value = find_part(model, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

/// True when the part is of this type, or a sequence that holds one.
bool has_type(const Json* part, std::string_view type, std::string_view list_key) {
  if (part == nullptr || !part->is_object()) return false;
  if (const Json* found = find_part(*part, "type"); found != nullptr && *found == type) return true;
  const Json* list = find_part(*part, list_key);
  return list != nullptr &&
         std::any_of(list->begin(), list->end(), [&](const Json& inner) { return has_type(&inner, type, list_key); });
}

/// Null or NFC, also in a sequence; anything else is refused.
bool normalizes_to_nfc(const Json* normalizer, const std::string& where) {
  if (normalizer == nullptr) return false;
  const std::string type = json_string(*normalizer, "type", where);
  if (type == "NFC") return true;
  if (type != "Sequence")
    throw InputError(str(where, ": type ", quoted_for_message(type), " is not known; known: NFC, or none"));
  bool result = false;
  if (const Json* list = find_part(*normalizer, "normalizers")) {
    for (const Json& inner : *list) result = normalizes_to_nfc(&inner, where) || result;
  }
  return result;
}

/// The names of the special tokens that the post-processor puts before and behind the text.
struct TemplateTokens {
  std::vector<std::string> before, behind;
};

void read_template(const Json& processor, const std::string& where, TemplateTokens& tokens) {
  const Json* single = find_part(processor, "single");
  if (single == nullptr || !single->is_array()) throw InputError(where + ": 'single' is missing");
  bool behind = false;
  for (const Json& item : *single) {
    if (item.contains("Sequence")) {
      behind = true;
    } else if (item.contains("SpecialToken")) {
      (behind ? tokens.behind : tokens.before).push_back(json_string(item["SpecialToken"], "id", where));
    } else {
      throw InputError(where + ": an item of 'single' is neither 'Sequence' nor 'SpecialToken'");
    }
  }
}

void read_post_processor(const Json* processor, const std::string& where, TemplateTokens& tokens) {
  if (processor == nullptr) return;
  const std::string type = json_string(*processor, "type", where);
  if (type == "ByteLevel") return;  // moves offsets, adds no ids
  if (type == "TemplateProcessing") return read_template(*processor, where, tokens);
  const Json* list = find_part(*processor, "processors");
  if (type != "Sequence" || list == nullptr) {
    throw InputError(str(where, ": type ", quoted_for_message(type),
                         " is not known; known: ByteLevel, TemplateProcessing, Sequence"));
  }
  for (const Json& inner : *list) read_post_processor(&inner, where, tokens);
}

ByteBpeParts read_parts(const TokenizerJson& document) {
  const std::string where = document.where + ": model";
  const Json& model = document.settings["model"];
  if (const std::string type = json_string(model, "type", where); type != "BPE") {
    throw InputError(str(where, ": type ", quoted_for_message(type), " is not known; known: BPE"));
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = find_part(model, affix);
    if (value != nullptr && *value != "") throw InputError(str(where, ": '", affix, "' is not supported"));
  }
  if (const Json* dropout = find_part(model, "dropout"); dropout != nullptr && *dropout != 0.0) {
    throw InputError(where + ": 'dropout' is not supported: the same text must give the same ids");
  }
  if (model_flag(model, "byte_fallback"))
    throw InputError(where + ": 'byte_fallback' is not supported with byte-level BPE");
  if (document.tokens.empty()) throw InputError(where + ": 'vocab' is missing or empty");
  ByteBpeParts parts{.tokens = document.tokens,
                     .merges = document.merges,
                     .unk_id = std::nullopt,
                     .fuse_unk = model_flag(model, "fuse_unk"),
                     .ignore_merges = model_flag(model, "ignore_merges")};
  if (find_part(model, "unk_token") != nullptr) {
    const std::string unk = json_string(model, "unk_token", where);
    const auto found = std::find(parts.tokens.begin(), parts.tokens.end(), unk);
    if (found == parts.tokens.end())
      throw InputError(str(where, ": unk_token ", quoted_for_message(unk), " is not in the vocabulary"));
    parts.unk_id = static_cast<TokenId>(found - parts.tokens.begin());
  }
  return parts;
}

class ByteBpeTokenizer final : public Tokenizer {
 public:
  ByteBpeTokenizer(const TokenizerJson& document, const TokenizerConfig& config, PreTokenizer::Route route);

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const override;
  std::string decode(std::span<const TokenId> ids, bool keep_special) const override;
  std::string token_bytes(TokenId id) const override;
  std::optional<TokenId> bos_id() const noexcept override { return bos_; }
  std::optional<TokenId> eos_id() const noexcept override { return eos_; }
  std::optional<TokenId> id_of(std::string_view token) const override;
  std::int64_t vocab_size() const noexcept override { return vocab_size_; }
  bool adds_bos() const noexcept override { return adds_bos_; }
  std::string description() const override;
  std::int64_t count_lost_bytes(std::string_view text) const override;

 private:
  void collect_added_tokens(const TokenizerJson& document, const TokenizerConfig& config);
  void add_token(const AddedToken& token, const std::string& where);
  void name_special_tokens(const TokenizerConfig& config, const std::string& where);
  void apply_post_processor(const TokenizerJson& document, const TokenizerConfig& config);
  /// Calls `text` for each stretch to pre-tokenize, `added` for each added token, in order.
  template <class OnText, class OnAdded>
  void for_each_stretch(std::string_view text, bool parse_special, OnText on_text, OnAdded on_added) const;
  std::string_view bytes_of(TokenId id) const;

  ByteBpeModel model_;
  PreTokenizer pre_tokenizer_;
  bool nfc_ = false;
  std::unordered_map<TokenId, AddedToken> added_;  // by id
  std::unordered_map<std::string, TokenId> added_ids_;
  AddedTokenMatcher original_matcher_, normalized_matcher_;
  std::vector<bool> is_added_;
  std::optional<TokenId> bos_, eos_;
  std::int64_t vocab_size_ = 0;
  bool adds_bos_ = false;
};

ByteBpeTokenizer::ByteBpeTokenizer(const TokenizerJson& document, const TokenizerConfig& config,
                                   PreTokenizer::Route route)
    : model_(read_parts(document), document.where),
      pre_tokenizer_(document.settings.value("pre_tokenizer", Json()), document.where + ": pre_tokenizer", route) {
  const Json& settings = document.settings;
  nfc_ = normalizes_to_nfc(find_part(settings, "normalizer"), document.where + ": normalizer");
  if (!has_type(find_part(settings, "decoder"), "ByteLevel", "decoders")) {
    throw InputError(document.where + ": decoder: expected type 'ByteLevel'");
  }
  collect_added_tokens(document, config);
  apply_post_processor(document, config);
}

void ByteBpeTokenizer::add_token(const AddedToken& token, const std::string& where) {
  const std::optional<TokenId> other = id_of(token.content);
  if (other && *other != token.id) {
    throw InputError(str(where, ": added token ", quoted_for_message(token.content), " has id ", token.id,
                         ", but the vocabulary says ", *other));
  }
  added_.insert_or_assign(token.id, token);
  added_ids_[token.content] = token.id;
  vocab_size_ = std::max(vocab_size_, std::int64_t{token.id} + 1);
}

void ByteBpeTokenizer::collect_added_tokens(const TokenizerJson& document, const TokenizerConfig& config) {
  vocab_size_ = model_.num_ids();
  for (const AddedToken& token : read_added_tokens(document)) add_token(token, document.where);
  for (const AddedToken& token : config.added_tokens) {
    if (!added_ids_.contains(token.content)) add_token(token, document.where);
  }
  name_special_tokens(config, document.where);
  std::vector<AddedToken> original, normalized;
  is_added_.resize(static_cast<std::size_t>(vocab_size_));
  for (const auto& [id, token] : added_) {
    is_added_[static_cast<std::size_t>(id)] = true;
    (token.normalized ? normalized : original).push_back(token);
  }
  for (AddedToken& token : normalized) {
    if (nfc_) token.content = normalize_nfc(token.content);
  }
  original_matcher_ = AddedTokenMatcher(std::move(original));
  normalized_matcher_ = AddedTokenMatcher(std::move(normalized));
}

void ByteBpeTokenizer::name_special_tokens(const TokenizerConfig& config, const std::string& where) {
  const auto id_of_special = [&](const std::optional<std::string>& name,
                                 std::string_view role) -> std::optional<TokenId> {
    if (!name) return std::nullopt;
    const std::optional<TokenId> id = id_of(*name);
    if (!id)
      throw InputError(
          str(where, ": ", role, " ", quoted_for_message(*name), " of tokenizer_config.json is not in the vocabulary"));
    // transformers makes it a special token even if the list of added tokens does not have it.
    if (!added_.contains(*id)) add_token({.id = *id, .content = *name, .special = true}, where);
    return id;
  };
  bos_ = id_of_special(config.bos, "bos_token");
  eos_ = id_of_special(config.eos, "eos_token");
  id_of_special(config.unk, "unk_token");
  id_of_special(config.pad, "pad_token");
}

void ByteBpeTokenizer::apply_post_processor(const TokenizerJson& document, const TokenizerConfig& config) {
  const std::string where = document.where + ": post_processor";
  TemplateTokens tokens;
  read_post_processor(find_part(document.settings, "post_processor"), where, tokens);
  if (!tokens.behind.empty())
    throw InputError(
        str(where, ": puts ", quoted_for_message(tokens.behind.front()), " behind the text, which is not supported"));
  if (tokens.before.size() > 1)
    throw InputError(where + ": puts more than one token before the text, which is not supported");
  if (!tokens.before.empty()) {
    const std::optional<TokenId> id = id_of(tokens.before.front());
    if (!id) throw InputError(str(where, ": ", quoted_for_message(tokens.before.front()), " is not in the vocabulary"));
    if (bos_ && *bos_ != *id)
      throw InputError(str(where, ": puts ", quoted_for_message(tokens.before.front()), " first, but bos_token is ",
                           quoted_for_message(*config.bos)));
    bos_ = id;
    adds_bos_ = true;
  }
  if (config.add_bos && *config.add_bos != adds_bos_) {
    log_warning(str(document.where, ": post_processor ", adds_bos_ ? "puts BOS first" : "adds no BOS",
                    ", but tokenizer_config.json has add_bos_token ", *config.add_bos ? "true" : "false",
                    "; following the post_processor"));
  }
}

template <class OnText, class OnAdded>
void ByteBpeTokenizer::for_each_stretch(std::string_view text, bool parse_special, OnText on_text,
                                        OnAdded on_added) const {
  std::vector<TextStretch> stretches, inner;
  original_matcher_.split(text, parse_special, stretches);
  for (const TextStretch& stretch : stretches) {
    if (stretch.added_id >= 0) {
      on_added(stretch.added_id);
      continue;
    }
    const std::string normalized = nfc_ ? normalize_nfc(stretch.text) : std::string();
    inner.clear();
    normalized_matcher_.split(nfc_ ? std::string_view(normalized) : stretch.text, parse_special, inner);
    for (const TextStretch& part : inner) {
      part.added_id >= 0 ? on_added(part.added_id) : on_text(part.text);
    }
  }
}

std::vector<TokenId> ByteBpeTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 3 + 4);
  if (options.add_bos && bos_) ids.push_back(*bos_);
  Pieces pieces;
  const auto encode_text = [&](std::string_view stretch) {
    pre_tokenizer_.split(stretch, pieces);
    for (const std::string_view piece : pieces) model_.append_piece(piece, ids);
  };
  for_each_stretch(text, options.parse_special, encode_text, [&ids](TokenId id) { ids.push_back(id); });
  if (options.add_eos && eos_) ids.push_back(*eos_);
  return ids;
}

std::int64_t ByteBpeTokenizer::count_lost_bytes(std::string_view text) const {
  if (model_.missing_bytes().empty() || model_.count_lost_bytes(text) == 0) return 0;
  std::int64_t count = 0;
  const auto count_text = [&](std::string_view stretch) { count += model_.count_lost_bytes(stretch); };
  for_each_stretch(text, true, count_text, [](TokenId) {});
  return count;
}

std::string_view ByteBpeTokenizer::bytes_of(TokenId id) const {
  if (id < 0 || id >= vocab_size_) return {};  // a model may have more rows than the tokenizer has tokens
  if (is_added_[static_cast<std::size_t>(id)]) return added_.at(id).content;
  return id < model_.num_ids() ? model_.bytes_of(id) : std::string_view();
}

std::string ByteBpeTokenizer::token_bytes(TokenId id) const { return std::string(bytes_of(id)); }

std::string ByteBpeTokenizer::decode(std::span<const TokenId> ids, bool keep_special) const {
  std::string bytes;
  for (const TokenId id : ids) {
    const bool is_added = id >= 0 && id < vocab_size_ && is_added_[static_cast<std::size_t>(id)];
    if (is_added && !keep_special && added_.at(id).special) continue;
    bytes += bytes_of(id);
  }
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::optional<TokenId> ByteBpeTokenizer::id_of(std::string_view token) const {
  if (const auto added = added_ids_.find(std::string(token)); added != added_ids_.end()) return added->second;
  const std::optional<std::string> bytes = from_byte_alphabet(token);
  return bytes ? model_.find(*bytes) : std::nullopt;
}

std::string ByteBpeTokenizer::description() const {
  const std::string lost = model_.missing_bytes().empty()
                               ? std::string()
                               : str(", ", model_.missing_bytes().size(), " byte values without a token");
  return str("byte-level BPE, ", nfc_ ? "NFC, " : "", "pre-tokenizer ", pre_tokenizer_.description(), ", ", vocab_size_,
             " tokens", adds_bos_ ? ", BOS first" : "", lost);
}

}  // namespace

bool is_byte_bpe(const TokenizerJson& document) {
  const Json& settings = document.settings;
  return has_type(find_part(settings, "pre_tokenizer"), "ByteLevel", "pretokenizers") ||
         has_type(find_part(settings, "decoder"), "ByteLevel", "decoders");
}

std::unique_ptr<Tokenizer> make_byte_bpe(const TokenizerJson& document, const TokenizerConfig& config,
                                         PreTokenizer::Route route) {
  return std::make_unique<ByteBpeTokenizer>(document, config, route);
}

}  // namespace dagmoe
