#include "data/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

constexpr std::string_view kSpaceSymbol = "\u2581";

/// Calls `visit` for a part of a tokenizer.json, or for every member when it is a sequence.
template <class Visit>
void for_each_part(const Json& settings, std::string_view key, std::string_view list_key, Visit visit) {
  const auto part = settings.find(key);
  if (part == settings.end() || part->is_null()) return;
  const auto list = part->find(list_key);
  if (list == part->end()) return visit(*part);
  for (const Json& inner : *list) visit(inner);
}

SpacePrefix metaspace_prefix(const Json& metaspace, const std::string& where) {
  const auto scheme = metaspace.find("prepend_scheme");
  if (scheme == metaspace.end()) {  // before tokenizers 0.15
    const auto prefix = metaspace.find("add_prefix_space");
    return prefix != metaspace.end() && *prefix == false ? SpacePrefix::kNever : SpacePrefix::kAlways;
  }
  if (*scheme == "always") return SpacePrefix::kAlways;
  if (*scheme == "first") return SpacePrefix::kFirst;
  if (*scheme == "never") return SpacePrefix::kNever;
  const std::string found = scheme->is_string() ? quoted_for_message(scheme->get<std::string>()) : scheme->type_name();
  throw InputError(str(where, ": Metaspace: prepend_scheme ", found, " is not known; known: always, first, never"));
}

/// `Prepend` in the normalizer is the model's own behaviour; a Metaspace pre-tokenizer says its own; neither means no
/// prefix.
SpacePrefix prefix_of(const TokenizerJson& document) {
  SpacePrefix prefix = SpacePrefix::kNever;
  for_each_part(document.settings, "normalizer", "normalizers", [&](const Json& part) {
    const std::string where = document.where + ": normalizer";
    const std::string type = json_string(part, "type", where);
    if (type == "Prepend") prefix = SpacePrefix::kModel;
    // Replace turns spaces into U+2581; Precompiled is the normalizer of the .model file.
    if (type != "Prepend" && type != "Replace" && type != "Precompiled") {
      throw InputError(str(where, ": type ", quoted_for_message(type), " is not known for a sentencepiece model"));
    }
  });
  for_each_part(document.settings, "pre_tokenizer", "pretokenizers", [&](const Json& part) {
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

/// Whether the post-processor puts a special token before the text; nullopt when there is none.
std::optional<bool> adds_bos_of(const TokenizerJson& document) {
  std::optional<bool> result;
  for_each_part(document.settings, "post_processor", "processors", [&](const Json& part) {
    if (json_string(part, "type", document.where) != "TemplateProcessing") return;
    const auto single = part.find("single");
    result = single != part.end() && single->is_array() && !single->empty() && (*single)[0].contains("SpecialToken");
  });
  return result;
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
  std::string description() const override;
  std::int64_t count_lost_bytes(std::string_view text) const override;

 private:
  using Processor = sentencepiece::SentencePieceProcessor;
  void load(const std::filesystem::path& file);
  void collect_special_tokens(const SentencePieceSettings& settings, const std::string& where);
  std::optional<TokenId> special_id(const std::optional<std::string>& name, int id_in_model,
                                    const std::string& where) const;
  bool adds_prefix(std::string_view stretch, bool is_first) const;
  void append_stretch(std::string_view text, bool with_prefix, std::vector<TokenId>& ids) const;
  bool is_special(TokenId id) const { return special_.contains(id) && special_.at(id).special; }

  Processor with_prefix_, without_prefix_;
  bool model_adds_prefix_ = false;  // the .model file asks for the leading space
  SpacePrefix prefix_;
  std::unordered_map<TokenId, AddedToken> special_;  // control pieces and added tokens, by id
  AddedTokenMatcher matcher_;
  std::optional<TokenId> bos_, eos_;
  std::int64_t num_pieces_ = 0, vocab_size_ = 0;
  bool adds_bos_ = false;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& file, const SentencePieceSettings& settings,
                                               const TokenizerConfig& config)
    : prefix_(settings.prefix) {
  load(file);
  collect_special_tokens(settings, file.string());
  bos_ = special_id(config.bos, with_prefix_.bos_id(), file.string());
  eos_ = special_id(config.eos, with_prefix_.eos_id(), file.string());
  adds_bos_ = bos_ && settings.adds_bos.value_or(true);
}

void SentencePieceTokenizer::load(const std::filesystem::path& file) {
  std::string proto(MappedFile::open(file)->text());
  if (!with_prefix_.LoadFromSerializedProto(proto).ok()) {
    throw InputError(file.string() + ": is no sentencepiece model; is the download complete?");
  }
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

bool SentencePieceTokenizer::adds_prefix(std::string_view stretch, bool is_first) const {
  const bool begins_with_space = stretch.starts_with(' ') || stretch.starts_with(kSpaceSymbol);
  switch (prefix_) {
    case SpacePrefix::kModel:
      return true;
    case SpacePrefix::kAlways:
      return !begins_with_space;
    case SpacePrefix::kFirst:
      return is_first && !begins_with_space;
    case SpacePrefix::kNever:
      return false;
  }
  return false;
}

void SentencePieceTokenizer::append_stretch(std::string_view text, bool with_prefix, std::vector<TokenId>& ids) const {
  std::vector<int> encoded;
  const auto status = (with_prefix ? with_prefix_ : without_prefix_).Encode({text.data(), text.size()}, &encoded);
  if (!status.ok()) throw InternalError(str("sentencepiece cannot encode a text: ", status.ToString()));
  ids.insert(ids.end(), encoded.begin(), encoded.end());
}

std::vector<TokenId> SentencePieceTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  if (options.add_bos && bos_) ids.push_back(*bos_);
  std::vector<TextStretch> stretches;
  matcher_.split(text, options.parse_special, stretches);
  for (const TextStretch& stretch : stretches) {
    if (stretch.added_id >= 0) {
      ids.push_back(stretch.added_id);
      continue;
    }
    const bool is_first = stretch.text.data() == text.data();
    append_stretch(stretch.text, !(options.continues && is_first) && adds_prefix(stretch.text, is_first), ids);
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
  for (std::size_t at = piece.find(kSpaceSymbol); at != std::string::npos; at = piece.find(kSpaceSymbol, at + 1)) {
    piece.replace(at, kSpaceSymbol.size(), " ");
  }
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
  const char* const prefix = prefix_ == SpacePrefix::kModel    ? "as the model says"
                             : prefix_ == SpacePrefix::kAlways ? "before every stretch"
                             : prefix_ == SpacePrefix::kFirst  ? "before the first stretch"
                                                               : "never";
  return str("sentencepiece, leading space ", prefix, ", ", vocab_size_, " tokens", adds_bos_ ? ", BOS first" : "");
}

}  // namespace

SentencePieceSettings sentencepiece_settings(const TokenizerJson* document, const TokenizerConfig& config) {
  SentencePieceSettings settings{.adds_bos = config.add_bos, .added_tokens = config.added_tokens};
  if (document == nullptr) {
    if (config.legacy) settings.prefix = *config.legacy ? SpacePrefix::kAlways : SpacePrefix::kFirst;
    return settings;
  }
  settings.prefix = prefix_of(*document);
  if (const std::optional<bool> adds_bos = adds_bos_of(*document)) settings.adds_bos = adds_bos;
  for (const AddedToken& token : read_added_tokens(*document)) settings.added_tokens.push_back(token);
  return settings;
}

std::unique_ptr<Tokenizer> make_sentencepiece(const std::filesystem::path& file, const SentencePieceSettings& settings,
                                              const TokenizerConfig& config) {
  return std::make_unique<SentencePieceTokenizer>(file, settings, config);
}

}  // namespace dagmoe
