#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/text.h"
#include "data/bpe_model.h"
#include "data/metaspace.h"
#include "data/tokenizer_json_parts.h"
#include "data/tokenizer_normalizer.h"
#include "data/tokenizer_post_processor.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

bool model_flag(const Json& model, std::string_view key) {
  const Json* value = find_part(model, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

/// Byte-level when the pre-tokenizer or the decoder says so; else the form of models converted from sentencepiece.
BpeSymbols symbols_of(const TokenizerJson& document) {
  const Json& settings = document.settings;
  return has_type(find_part(settings, "pre_tokenizer"), "ByteLevel", "pretokenizers") ||
                 has_type(find_part(settings, "decoder"), "ByteLevel", "decoders")
             ? BpeSymbols::kBytes
             : BpeSymbols::kChars;
}

BpeParts read_parts(const TokenizerJson& document) {
  const std::string where = document.where + ": model";
  const Json& model = document.settings["model"];
  if (const std::string type = json_string(model, "type", where); type != "BPE") {
    throw InputError(str(where, ": type ", quoted_for_message(type), " is not known; known: BPE",
                         type == "Unigram" ? "; put the tokenizer.model beside it, which holds the same" : ""));
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = find_part(model, affix);
    if (value != nullptr && *value != "") throw InputError(str(where, ": '", affix, "' is not supported"));
  }
  if (const Json* dropout = find_part(model, "dropout"); dropout != nullptr && *dropout != 0.0) {
    throw InputError(where + ": 'dropout' is not supported: the same text must give the same ids");
  }
  if (document.tokens.empty()) throw InputError(where + ": 'vocab' is missing or empty");
  BpeParts parts{.symbols = symbols_of(document),
                 .tokens = document.tokens,
                 .merges = document.merges,
                 .unk_id = std::nullopt,
                 .fuse_unk = model_flag(model, "fuse_unk"),
                 .byte_fallback = model_flag(model, "byte_fallback"),
                 .ignore_merges = model_flag(model, "ignore_merges")};
  if (parts.byte_fallback && parts.symbols == BpeSymbols::kBytes)
    throw InputError(where + ": 'byte_fallback' is not supported with byte-level BPE");
  if (find_part(model, "unk_token") != nullptr) {
    const std::string unk = json_string(model, "unk_token", where);
    const auto found = std::find(parts.tokens.begin(), parts.tokens.end(), unk);
    if (found == parts.tokens.end())
      throw InputError(str(where, ": unk_token ", quoted_for_message(unk), " is not in the vocabulary"));
    parts.unk_id = static_cast<TokenId>(found - parts.tokens.begin());
  }
  return parts;
}

/// Whether no piece that is cut before U+2581 could have been merged with what precedes it.
bool words_stand_alone(const TokenizerJson& document) {
  if (model_flag(document.settings["model"], "ignore_merges")) return false;
  const auto goes_beyond_word = [](const std::string& token) {
    const std::size_t word = token.find_first_not_of(kSpaceSymbol);
    return word != std::string::npos && token.find(kSpaceSymbol, word) != std::string::npos;
  };
  return std::find(document.tokens.begin(), document.tokens.end(), kSpaceSymbol) != document.tokens.end() &&
         std::none_of(document.merges.begin(), document.merges.end(),
                      [&](const auto& merge) { return goes_beyond_word(merge.first + merge.second); });
}

/// For the converted form: whether decoding takes one space away from the start. Throws InputError for a decoder of
/// another kind.
bool decoder_strips_space(const TokenizerJson& document) {
  const std::string where = document.where + ": decoder";
  bool strips = false, restores = false;
  for_each_part(find_part(document.settings, "decoder"), "decoders", [&](const Json& step) {
    const std::string type = json_string(step, "type", where);
    if (type == "Metaspace") strips = metaspace_prefix(step, where) != SpacePrefix::kNever;
    if (type == "Strip") strips = true;
    restores = restores || type == "Metaspace" || type == "Replace";
    if (type != "Metaspace" && type != "Strip" && type != "Replace" && type != "ByteFallback" && type != "Fuse") {
      throw InputError(str(where, ": type ", quoted_for_message(type),
                           " is not known; known: ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip"));
    }
  });
  if (!restores) throw InputError(where + ": expected type 'ByteLevel', 'Metaspace' or a sequence with 'Replace'");
  return strips;
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(const TokenizerJson& document, const TokenizerConfig& config, PreTokenizer::Route route);

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const override;
  std::string decode(std::span<const TokenId> ids, bool keep_special) const override;
  std::string token_bytes(TokenId id) const override;
  std::optional<TokenId> bos_id() const noexcept override { return bos_; }
  std::optional<TokenId> eos_id() const noexcept override { return eos_; }
  std::optional<TokenId> id_of(std::string_view token) const override;
  std::int64_t vocab_size() const noexcept override { return vocab_size_; }
  bool adds_bos() const noexcept override { return adds_bos_; }
  bool adds_eos() const noexcept override { return adds_eos_; }
  std::string description() const override;
  std::int64_t count_lost_bytes(std::string_view text) const override;

 private:
  bool is_byte_level() const noexcept { return byte_level_.has_value(); }
  void make_pre_tokenizer(const TokenizerJson& document, PreTokenizer::Route route);
  void collect_added_tokens(const TokenizerJson& document, const TokenizerConfig& config);
  void add_token(const AddedToken& token, const std::string& where);
  void name_special_tokens(const TokenizerConfig& config, const std::string& where);
  void apply_post_processor(const TokenizerJson& document, const TokenizerConfig& config);
  /// Calls `on_pieces` with the pieces of each stretch of text, `on_added` for each added token, in order.
  template <class OnPieces, class OnAdded>
  void for_each_stretch(std::string_view text, EncodeOptions options, OnPieces on_pieces, OnAdded on_added) const;
  void append_bytes(TokenId id, std::string& bytes) const;

  BpeModel model_;
  Normalizer normalizer_;
  std::optional<PreTokenizer> byte_level_;  // one of the two
  std::optional<MetaspaceSplitter> metaspace_;
  std::unordered_map<TokenId, AddedToken> added_;  // by id
  std::unordered_map<std::string, TokenId> added_ids_;
  AddedTokenMatcher original_matcher_, normalized_matcher_;
  std::vector<bool> is_added_;
  std::optional<TokenId> bos_, eos_;
  std::int64_t vocab_size_ = 0;
  bool adds_bos_ = false, adds_eos_ = false, strips_space_ = false;
};

BpeTokenizer::BpeTokenizer(const TokenizerJson& document, const TokenizerConfig& config, PreTokenizer::Route route)
    : model_(read_parts(document), document.where),
      normalizer_(find_part(document.settings, "normalizer"), document.where + ": normalizer") {
  make_pre_tokenizer(document, route);
  collect_added_tokens(document, config);
  apply_post_processor(document, config);
}

void BpeTokenizer::make_pre_tokenizer(const TokenizerJson& document, PreTokenizer::Route route) {
  const Json* pre_tokenizer = find_part(document.settings, "pre_tokenizer");
  const std::string where = document.where + ": pre_tokenizer";
  if (symbols_of(document) == BpeSymbols::kChars) {
    metaspace_.emplace(pre_tokenizer, words_stand_alone(document), where);
    strips_space_ = decoder_strips_space(document);
    return;
  }
  byte_level_.emplace(pre_tokenizer == nullptr ? Json() : *pre_tokenizer, where, route);
  if (!has_type(find_part(document.settings, "decoder"), "ByteLevel", "decoders")) {
    throw InputError(document.where + ": decoder: expected type 'ByteLevel'");
  }
}

void BpeTokenizer::add_token(const AddedToken& token, const std::string& where) {
  const std::optional<TokenId> other = id_of(token.content);
  if (other && *other != token.id) {
    throw InputError(str(where, ": added token ", quoted_for_message(token.content), " has id ", token.id,
                         ", but the vocabulary says ", *other));
  }
  added_.insert_or_assign(token.id, token);
  added_ids_[token.content] = token.id;
  vocab_size_ = std::max(vocab_size_, std::int64_t{token.id} + 1);
}

void BpeTokenizer::collect_added_tokens(const TokenizerJson& document, const TokenizerConfig& config) {
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
  for (AddedToken& token : normalized) token.content = normalizer_.apply(token.content, /*with_prefix=*/true);
  original_matcher_ = AddedTokenMatcher(std::move(original));
  normalized_matcher_ = AddedTokenMatcher(std::move(normalized));
}

void BpeTokenizer::name_special_tokens(const TokenizerConfig& config, const std::string& where) {
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

void BpeTokenizer::apply_post_processor(const TokenizerJson& document, const TokenizerConfig& config) {
  const std::string where = document.where + ": post_processor";
  const SpecialFrame frame = special_frame(document, config);
  const auto apply = [&](const std::optional<std::string>& name, std::string_view role, std::optional<TokenId>& token) {
    if (!name) return false;
    const std::optional<TokenId> id = id_of(*name);
    if (!id) throw InputError(str(where, ": ", quoted_for_message(*name), " is not in the vocabulary"));
    if (token && *token != *id) {
      std::string other;
      append_bytes(*token, other);
      throw InputError(
          str(where, ": puts ", quoted_for_message(*name), " there, but ", role, " is ", quoted_for_message(other)));
    }
    token = id;
    return true;
  };
  adds_bos_ = apply(frame.before, "bos_token", bos_);
  adds_eos_ = apply(frame.behind, "eos_token", eos_);
}

template <class OnPieces, class OnAdded>
void BpeTokenizer::for_each_stretch(std::string_view text, EncodeOptions options, OnPieces on_pieces,
                                    OnAdded on_added) const {
  std::string valid, normalized, spaced;
  if (!is_valid_utf8(text)) text = valid = replace_invalid_utf8(text);
  std::vector<TextStretch> stretches, inner;
  Pieces pieces;
  original_matcher_.split(text, options.parse_special, stretches);
  for (const TextStretch& stretch : stretches) {
    if (stretch.added_id >= 0) {
      on_added(stretch.added_id);
      continue;
    }
    const bool begins_text = stretch.text.data() == text.data();
    std::string_view rest = stretch.text;
    if (!normalizer_.empty()) rest = normalized = normalizer_.apply(rest, !(options.continues && begins_text));
    inner.clear();
    normalized_matcher_.split(rest, options.parse_special, inner);
    for (const TextStretch& part : inner) {
      if (part.added_id >= 0) {
        on_added(part.added_id);
        continue;
      }
      if (byte_level_) {
        byte_level_->split(part.text, pieces);
      } else {
        const bool begins = begins_text && part.text.data() == rest.data();
        const bool with_prefix =
            !(options.continues && begins) && metaspace_->adds_prefix(part.text, begins && !options.after_control);
        metaspace_->split(part.text, with_prefix, spaced, pieces);
      }
      on_pieces(pieces);
    }
  }
}

std::vector<TokenId> BpeTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 3 + 4);
  if (options.add_bos && bos_) ids.push_back(*bos_);
  const auto encode_pieces = [&](const Pieces& pieces) {
    for (const std::string_view piece : pieces) model_.append_piece(piece, ids);
  };
  for_each_stretch(text, options, encode_pieces, [&ids](TokenId id) { ids.push_back(id); });
  if (options.add_eos && eos_) ids.push_back(*eos_);
  return ids;
}

std::int64_t BpeTokenizer::count_lost_bytes(std::string_view text) const {
  if (model_.missing_bytes().empty()) return 0;
  std::int64_t count = 0;
  const auto count_pieces = [&](const Pieces& pieces) {
    for (const std::string_view piece : pieces) count += model_.count_lost_bytes(piece);
  };
  for_each_stretch(text, {}, count_pieces, [](TokenId) {});
  return count;
}

void BpeTokenizer::append_bytes(TokenId id, std::string& bytes) const {
  if (id < 0 || id >= vocab_size_) return;  // a model may have more rows than the tokenizer has tokens
  if (is_added_[static_cast<std::size_t>(id)]) {
    bytes += added_.at(id).content;
    return;
  }
  if (id >= model_.num_ids()) return;
  const std::string_view token = model_.bytes_of(id);
  if (is_byte_level()) {
    bytes += token;
  } else if (const auto byte = fallback_byte(token)) {
    bytes += static_cast<char>(*byte);
  } else {
    std::string spelled(token);
    restore_spaces(spelled);
    bytes += spelled;
  }
}

std::string BpeTokenizer::token_bytes(TokenId id) const {
  std::string bytes;
  append_bytes(id, bytes);
  return bytes;
}

std::string BpeTokenizer::decode(std::span<const TokenId> ids, bool keep_special) const {
  std::string bytes;
  for (const TokenId id : ids) {
    const bool is_added = id >= 0 && id < vocab_size_ && is_added_[static_cast<std::size_t>(id)];
    if (is_added && !keep_special && added_.at(id).special) continue;
    append_bytes(id, bytes);
  }
  // The space that encoding put in front of the text.
  if (strips_space_ && bytes.starts_with(' ')) bytes.erase(0, 1);
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::optional<TokenId> BpeTokenizer::id_of(std::string_view token) const {
  if (const auto added = added_ids_.find(std::string(token)); added != added_ids_.end()) return added->second;
  if (!is_byte_level()) return model_.find(token);
  const std::optional<std::string> bytes = from_byte_alphabet(token);
  return bytes ? model_.find(*bytes) : std::nullopt;
}

std::string BpeTokenizer::description() const {
  std::string text =
      is_byte_level() ? str("byte-level BPE, ", normalizer_.description(), "pre-tokenizer ", byte_level_->description())
                      : str("BPE of characters, leading space ",
                            prefix_text(normalizer_.has_prefix() ? SpacePrefix::kModel : metaspace_->prefix()));
  text += str(", ", vocab_size_, " tokens", adds_bos_ ? ", BOS first" : "", adds_eos_ ? ", EOS last" : "");
  if (!model_.missing_bytes().empty()) text += str(", ", model_.missing_bytes().size(), " byte values without a token");
  return text;
}

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const TokenizerJson& document, const TokenizerConfig& config,
                                              PreTokenizer::Route route) {
  return std::make_unique<BpeTokenizer>(document, config, route);
}

}  // namespace dagmoe
