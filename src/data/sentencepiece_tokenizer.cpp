#include "data/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/bpe_model.h"
#include "data/tokenizer_json_parts.h"
#include "data/tokenizer_post_processor.h"
#include "data/unicode.h"
#include "data/unigram_model.h"

namespace dagmoe {

namespace {

/// `Prepend` in the normalizer is the model's own behaviour; a Metaspace pre-tokenizer says its own; neither means no
/// prefix.
SpacePrefix prefix_of(const TokenizerJson& document) {
  SpacePrefix prefix = SpacePrefix::kNever;
  for_each_part(find_part(document.settings, "normalizer"), "normalizers", [&](const Json& part) {
    const std::string where = document.where + ": normalizer";
    const std::string type = json_string(part, "type", where);
    if (type == "Prepend") prefix = SpacePrefix::kModel;
    // Replace turns spaces into U+2581; Precompiled is the normalizer of the .model file.
    if (type != "Prepend" && type != "Replace" && type != "Precompiled") {
      throw InputError(str(where, ": type ", quoted_for_message(type), " is not known for a sentencepiece model"));
    }
  });
  for_each_part(find_part(document.settings, "pre_tokenizer"), "pretokenizers", [&](const Json& part) {
    const std::string where = document.where + ": pre_tokenizer";
    const std::string type = json_string(part, "type", where);
    if (type == "Metaspace") prefix = metaspace_prefix(part, where);
    // Gemma splits at spaces, which sentencepiece does by itself.
    if (type != "Metaspace" && type != "Split") {
      throw InputError(str(where, ": type ", quoted_for_message(type), " is not known for a sentencepiece model"));
    }
  });
  return prefix;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& file, const SentencePieceSettings& settings,
                         const TokenizerConfig& config);

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
  using Processor = sentencepiece::SentencePieceProcessor;
  void load(const std::filesystem::path& file);
  void collect_special_tokens(const SentencePieceSettings& settings, const std::string& where);
  std::optional<TokenId> special_id(const std::optional<std::string>& name, int id_in_model,
                                    const std::string& where) const;
  void append_stretch(std::string_view text, bool with_prefix, std::vector<TokenId>& ids) const;
  bool is_special(TokenId id) const { return special_.contains(id) && special_.at(id).special; }

  Processor with_prefix_, without_prefix_;
  std::optional<UnigramModel> unigram_;  // for unigram models; the library only normalizes then
  bool byte_fallback_ = false;
  bool model_adds_prefix_ = false;  // the .model file asks for the leading space
  SpacePrefix prefix_;
  std::unordered_map<TokenId, AddedToken> special_;  // control pieces and added tokens, by id
  AddedTokenMatcher matcher_;
  std::optional<TokenId> bos_, eos_;
  std::int64_t num_pieces_ = 0, vocab_size_ = 0;
  bool adds_bos_ = false, adds_eos_ = false;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& file, const SentencePieceSettings& settings,
                                               const TokenizerConfig& config)
    : prefix_(settings.prefix) {
  load(file);
  collect_special_tokens(settings, file.string());
  bos_ = special_id(config.bos, with_prefix_.bos_id(), file.string());
  eos_ = special_id(config.eos, with_prefix_.eos_id(), file.string());
  adds_bos_ = bos_ && settings.adds_bos.value_or(true);
  adds_eos_ = eos_ && settings.adds_eos;
}

void SentencePieceTokenizer::load(const std::filesystem::path& file) {
  std::string proto(MappedFile::open(file)->text());
  if (!with_prefix_.LoadFromSerializedProto(proto).ok()) {
    throw InputError(file.string() + ": is no sentencepiece model; is the download complete?");
  }
  SentencePieceFile parts = read_sentencepiece_file(proto, file.string());
  byte_fallback_ = parts.byte_fallback;
  if (parts.is_unigram) unigram_.emplace(std::move(parts));
  // The same model with normalizer_spec.add_dummy_prefix = false: protobuf merges a message that occurs twice, so a
  // second field 3 (ModelProto.normalizer_spec) that holds field 3 (add_dummy_prefix) overrides the first.
  proto += std::string_view("\x1A\x02\x18\x00", 4);
  if (!without_prefix_.LoadFromSerializedProto(proto).ok()) {
    throw InternalError(file.string() + ": sentencepiece refuses the model without its dummy prefix");
  }
  num_pieces_ = with_prefix_.GetPieceSize();
  if (num_pieces_ == 0) throw InputError(file.string() + ": the sentencepiece model has no pieces");
  std::vector<std::string> pieces;
  if (with_prefix_.Encode("a", &pieces).ok() && !pieces.empty())
    model_adds_prefix_ = pieces.front().starts_with(kSpaceSymbol);
}

void SentencePieceTokenizer::collect_special_tokens(const SentencePieceSettings& settings, const std::string& where) {
  vocab_size_ = num_pieces_;
  for (TokenId id = 0; id < num_pieces_; ++id) {
    if (!with_prefix_.IsControl(id) && !with_prefix_.IsUnknown(id)) continue;
    special_[id] = {.id = id, .content = with_prefix_.IdToPiece(id), .special = true};
  }
  for (const AddedToken& token : settings.added_tokens) {
    if (token.id < num_pieces_ && with_prefix_.IdToPiece(token.id) != token.content) {
      throw InputError(str(where, ": added token ", quoted_for_message(token.content), " has id ", token.id,
                           ", but that piece is ", quoted_for_message(with_prefix_.IdToPiece(token.id))));
    }
    special_[token.id] = token;
    vocab_size_ = std::max(vocab_size_, std::int64_t{token.id} + 1);
  }
  std::vector<AddedToken> tokens;
  for (const auto& [id, token] : special_) tokens.push_back(token);
  matcher_ = AddedTokenMatcher(std::move(tokens));
}

std::optional<TokenId> SentencePieceTokenizer::special_id(const std::optional<std::string>& name, int id_in_model,
                                                          const std::string& where) const {
  if (!name) return id_in_model >= 0 ? std::optional<TokenId>(id_in_model) : std::nullopt;
  const std::optional<TokenId> id = id_of(*name);
  if (!id)
    throw InputError(str(where, ": special token ", quoted_for_message(*name),
                         " of tokenizer_config.json is not in the vocabulary"));
  return id;
}

void SentencePieceTokenizer::append_stretch(std::string_view text, bool with_prefix, std::vector<TokenId>& ids) const {
  const Processor& processor = with_prefix ? with_prefix_ : without_prefix_;
  const auto check = [](const auto& status) {
    if (!status.ok()) throw InternalError(str("sentencepiece cannot encode a text: ", status.ToString()));
  };
  if (!unigram_) {
    std::vector<int> encoded;
    check(processor.Encode({text.data(), text.size()}, &encoded));
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    return;
  }
  // The library's pieces, whichever it takes, are together the normalized text.
  std::vector<std::string> pieces;
  check(processor.Encode({text.data(), text.size()}, &pieces));
  std::string normalized;
  for (const std::string& piece : pieces) {
    const auto byte = byte_fallback_ ? fallback_byte(piece) : std::nullopt;
    byte ? normalized.append(1, static_cast<char>(*byte)) : normalized.append(piece);
  }
  unigram_->append(normalized, ids);
}

std::vector<TokenId> SentencePieceTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::string valid;
  if (!is_valid_utf8(text)) text = valid = replace_invalid_utf8(text);
  std::vector<TokenId> ids;
  if (options.add_bos && bos_) ids.push_back(*bos_);
  std::vector<TextStretch> stretches;
  matcher_.split(text, options.parse_special, stretches);
  for (const TextStretch& stretch : stretches) {
    if (stretch.added_id >= 0) {
      ids.push_back(stretch.added_id);
      continue;
    }
    const bool begins = stretch.text.data() == text.data();
    const bool with_prefix =
        !(options.continues && begins) && adds_space_prefix(prefix_, stretch.text, begins && !options.after_control);
    append_stretch(stretch.text, with_prefix, ids);
  }
  if (options.add_eos && eos_) ids.push_back(*eos_);
  return ids;
}

std::string SentencePieceTokenizer::token_bytes(TokenId id) const {
  if (const auto found = special_.find(id); found != special_.end()) return found->second.content;
  if (id < 0 || id >= num_pieces_) return {};  // a model may have more rows than the tokenizer has tokens
  std::string piece = with_prefix_.IdToPiece(id);
  if (with_prefix_.IsByte(id)) {  // "<0x0A>"
    return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  }
  restore_spaces(piece);
  return piece;
}

std::string SentencePieceTokenizer::decode(std::span<const TokenId> ids, bool keep_special) const {
  std::string text;
  for (const TokenId id : ids) {
    if (keep_special || !is_special(id)) text += token_bytes(id);
  }
  // The space that encoding put in front of the text.
  if (model_adds_prefix_ && prefix_ != SpacePrefix::kNever && text.starts_with(' ')) text.erase(0, 1);
  return replace_invalid_utf8(text);
}

std::optional<TokenId> SentencePieceTokenizer::id_of(std::string_view token) const {
  const auto spells = [token](const auto& entry) { return entry.second.content == token; };
  if (const auto found = std::find_if(special_.begin(), special_.end(), spells); found != special_.end())
    return found->first;
  const int id = with_prefix_.PieceToId({token.data(), token.size()});
  if (id < 0 || with_prefix_.IdToPiece(id) != token) return std::nullopt;  // unknown pieces get the id of <unk>
  return id;
}

std::int64_t SentencePieceTokenizer::count_lost_bytes(std::string_view text) const {
  std::int64_t count = 0;
  const auto pieces = with_prefix_.EncodeAsImmutableProto({text.data(), text.size()});
  for (const auto& piece : pieces.pieces()) {
    if (with_prefix_.IsUnknown(static_cast<int>(piece.id())))
      count += static_cast<std::int64_t>(piece.surface().size());
  }
  return count;
}

std::string SentencePieceTokenizer::description() const {
  return str("sentencepiece, leading space ", prefix_text(prefix_), ", ", vocab_size_, " tokens",
             adds_bos_ ? ", BOS first" : "", adds_eos_ ? ", EOS last" : "");
}

}  // namespace

SentencePieceSettings sentencepiece_settings(const TokenizerJson* document, const TokenizerConfig& config) {
  SentencePieceSettings settings{
      .adds_bos = config.add_bos, .adds_eos = config.add_eos.value_or(false), .added_tokens = config.added_tokens};
  if (document == nullptr) {
    if (config.legacy) settings.prefix = *config.legacy ? SpacePrefix::kAlways : SpacePrefix::kFirst;
    return settings;
  }
  settings.prefix = prefix_of(*document);
  const SpecialFrame frame = special_frame(*document, config);
  if (find_part(document->settings, "post_processor") != nullptr) settings.adds_bos = frame.before.has_value();
  settings.adds_eos = frame.behind.has_value();
  for (const AddedToken& token : read_added_tokens(*document)) settings.added_tokens.push_back(token);
  return settings;
}

std::unique_ptr<Tokenizer> make_sentencepiece(const std::filesystem::path& file, const SentencePieceSettings& settings,
                                              const TokenizerConfig& config) {
  return std::make_unique<SentencePieceTokenizer>(file, settings, config);
}

}  // namespace dagmoe
