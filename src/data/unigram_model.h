#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

/// One entry of a sentencepiece .model file, by its place there.
struct SentencePiece {
  enum class Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  std::string text;
  float score = 0.0F;
  Type type = Type::kNormal;
};

/// The parts of a .model file (a protocol buffer, sentencepiece_model.proto) that the library does not show.
struct SentencePieceFile {
  std::vector<SentencePiece> pieces;
  bool is_unigram = true;  ///< model_type; the other kinds are left to the library
  bool byte_fallback = false;
};
/// Throws InputError, with `where` in front, for bytes that are no such file.
SentencePieceFile read_sentencepiece_file(std::string_view bytes, const std::string& where);

/// Segmentation of normalized text into the pieces with the greatest sum of scores, as sentencepiece 0.2.3 has it: sums
/// in float, and of equal sums the one that was found first. The library that Debian ships (0.1.97) rounds elsewhere,
/// so that about one line of 3,000 comes out otherwise.
class UnigramModel {
 public:
  explicit UnigramModel(SentencePieceFile file);
  void append(std::string_view normalized, std::vector<TokenId>& ids) const;

 private:
  struct Entry {
    std::string_view text;
    float score;
    TokenId id;
  };
  /// The best way to the place behind a character: where its last piece starts, and which it is.
  struct Step {
    float score = 0.0F;
    std::int64_t start = -1;
    TokenId id = -1;
  };
  void find_steps(std::string_view text, std::vector<Step>& steps) const;
  void append_unknown(std::string_view text, std::vector<TokenId>& ids) const;

  SentencePieceFile file_;
  std::vector<Entry> entries_;  // by text
  std::vector<TokenId> byte_ids_;
  TokenId unk_id_ = 0;
  float unk_score_ = 0.0F;
};

}  // namespace dagmoe
