#include "data/sentencepiece_write.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {

namespace {

// Field numbers of sentencepiece_model.proto (sentencepiece 0.2.0).
constexpr int kModelPieces = 1, kModelTrainerSpec = 2, kModelNormalizerSpec = 3;
constexpr int kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr int kTrainerModelType = 3, kTrainerByteFallback = 35;
constexpr int kTrainerUnkId = 40, kTrainerBosId = 41, kTrainerEosId = 42, kTrainerPadId = 43;
constexpr int kTrainerUnkPiece = 45, kTrainerBosPiece = 46, kTrainerEosPiece = 47, kTrainerPadPiece = 48;
constexpr int kNormalizerName = 1, kNormalizerDummyPrefix = 3, kNormalizerExtraWhitespaces = 4;
constexpr int kModelTypeBpe = 2;

/// One protocol buffer message under construction.
class Message {
 public:
  void integer(int field, std::int64_t value) {
    tag(field, 0);
    varint(static_cast<std::uint64_t>(value));
  }
  void real(int field, float value) {
    tag(field, 5);
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof(value));
    std::memcpy(bytes_.data() + at, &value, sizeof(value));
  }
  void text(int field, std::string_view value) {
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, int wire_type) { varint(static_cast<std::uint64_t>(field << 3 | wire_type)); }
  // Seven bits a byte, the lowest first; the top bit says that more follow.
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

const std::string& piece_text(const SentencePieceVocabulary& vocabulary, TokenId id) {
  return vocabulary.pieces[static_cast<std::size_t>(id)].text;
}

Message trainer_spec(const SentencePieceVocabulary& vocabulary) {
  Message spec;
  spec.integer(kTrainerModelType, kModelTypeBpe);
  const bool has_bytes = std::any_of(vocabulary.pieces.begin(), vocabulary.pieces.end(),
                                     [](const SentencePiece& piece) { return piece.type == SentencePieceType::kByte; });
  spec.integer(kTrainerByteFallback, has_bytes ? 1 : 0);
  const auto special = [&](int id_field, int piece_field, const std::optional<TokenId>& id) {
    spec.integer(id_field, id.value_or(-1));
    if (id) spec.text(piece_field, piece_text(vocabulary, *id));
  };
  special(kTrainerUnkId, kTrainerUnkPiece, vocabulary.unk);
  special(kTrainerBosId, kTrainerBosPiece, vocabulary.bos);
  special(kTrainerEosId, kTrainerEosPiece, vocabulary.eos);
  special(kTrainerPadId, kTrainerPadPiece, vocabulary.pad);
  return spec;
}

SentencePieceType type_in_model(const SentencePieceVocabulary& vocabulary, std::size_t id) {
  if (id == static_cast<std::size_t>(vocabulary.unk)) return SentencePieceType::kUnknown;
  const SentencePieceType type = vocabulary.pieces[id].type;
  return type == SentencePieceType::kUserDefined ? SentencePieceType::kControl : type;
}

void check_pieces(const SentencePieceVocabulary& vocabulary) {
  std::unordered_set<std::string_view> seen;
  for (std::size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const std::string& text = vocabulary.pieces[id].text;
    if (text.empty()) throw InputError(str("tokenizer: token ", id, " has no text"));
    if (!seen.insert(text).second) {
      throw InputError(str("tokenizer: token ", id, ", ", quoted_for_message(text), ", has the text of another one"));
    }
  }
}

Json special_tokens_map(const SentencePieceVocabulary& vocabulary) {
  Json map = Json::object();
  if (vocabulary.bos) map["bos_token"] = piece_text(vocabulary, *vocabulary.bos);
  if (vocabulary.eos) map["eos_token"] = piece_text(vocabulary, *vocabulary.eos);
  map["unk_token"] = piece_text(vocabulary, vocabulary.unk);
  if (vocabulary.pad) map["pad_token"] = piece_text(vocabulary, *vocabulary.pad);
  return map;
}

/// Control and user-defined pieces in the form of "added_tokens_decoder".
Json added_tokens(const SentencePieceVocabulary& vocabulary) {
  Json tokens = Json::object();
  for (std::size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const SentencePieceType type = type_in_model(vocabulary, id);
    if (type != SentencePieceType::kControl && type != SentencePieceType::kUnknown) continue;
    tokens[std::to_string(id)] = {{"content", vocabulary.pieces[id].text},
                                  {"lstrip", false},
                                  {"normalized", false},
                                  {"rstrip", false},
                                  {"single_word", false},
                                  {"special", vocabulary.pieces[id].type != SentencePieceType::kUserDefined}};
  }
  return tokens;
}

Json tokenizer_config(const SentencePieceVocabulary& vocabulary) {
  Json config = special_tokens_map(vocabulary);
  config["add_bos_token"] = vocabulary.add_bos;
  config["add_eos_token"] = false;
  config["added_tokens_decoder"] = added_tokens(vocabulary);
  config["clean_up_tokenization_spaces"] = false;
  if (vocabulary.max_length > 0) config["model_max_length"] = vocabulary.max_length;
  config["tokenizer_class"] = "LlamaTokenizer";
  if (!vocabulary.chat_template.empty()) config["chat_template"] = vocabulary.chat_template;
  return config;
}

}  // namespace

std::string sentencepiece_model(const SentencePieceVocabulary& vocabulary) {
  Message model;
  for (std::size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    Message piece;
    piece.text(kPieceText, vocabulary.pieces[id].text);
    piece.real(kPieceScore, vocabulary.pieces[id].score);
    piece.integer(kPieceType, static_cast<std::int64_t>(type_in_model(vocabulary, id)));
    model.text(kModelPieces, piece.bytes());
  }
  Message normalizer;
  normalizer.text(kNormalizerName, "identity");
  normalizer.integer(kNormalizerDummyPrefix, vocabulary.add_dummy_prefix ? 1 : 0);
  normalizer.integer(kNormalizerExtraWhitespaces, vocabulary.remove_extra_whitespaces ? 1 : 0);
  model.text(kModelTrainerSpec, trainer_spec(vocabulary).bytes());
  model.text(kModelNormalizerSpec, normalizer.bytes());
  return model.bytes();
}

void write_sentencepiece_files(const std::filesystem::path& folder, const SentencePieceVocabulary& vocabulary) {
  check_pieces(vocabulary);
  write_file_atomically(folder / "tokenizer.model", sentencepiece_model(vocabulary));
  write_file_atomically(folder / "tokenizer_config.json", tokenizer_config(vocabulary).dump(2) + "\n");
  write_file_atomically(folder / "special_tokens_map.json", special_tokens_map(vocabulary).dump(2) + "\n");
  if (!vocabulary.chat_template.empty()) {
    write_file_atomically(folder / "chat_template.jinja", vocabulary.chat_template);
  }
}

}  // namespace dagmoe
