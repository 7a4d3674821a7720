#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

/// The byte alphabet of GPT-2: every byte is one printable character. Bytes 33-126, 161-172 and 174-255 stand for
/// themselves, the other 68 are U+0100, U+0101, ... in order (space: U+0120).
std::string to_byte_alphabet(std::string_view bytes);
/// The inverse; nullopt when a character is outside the alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view spelled);

/// What a model of type BPE in tokenizer.json says.
struct ByteBpeParts {
  std::vector<std::string> tokens;                          ///< spelling by id; "" where an id is unused
  std::vector<std::pair<std::string, std::string>> merges;  ///< in the byte alphabet, best first
  std::optional<TokenId> unk_id;                            ///< stands for bytes that have no token
  bool fuse_unk = false;                                    ///< one unknown token for a run of such bytes
  bool ignore_merges = false;                               ///< a piece that is a token as a whole needs no merges
};

/// Byte pair encoding of the pieces that a pre-tokenizer made. Immutable, so threads may share one.
class ByteBpeModel {
 public:
  /// Throws InputError, with `where` in front, for a token given twice and for merges whose parts
  /// or result are not in the vocabulary.
  ByteBpeModel(const ByteBpeParts& parts, const std::string& where);

  /// Appends the ids of one piece: repeatedly joins the adjacent pair of the best merge, leftmost first. Bytes without
  /// a token are dropped when there is no unknown token, as Hugging Face does.
  void append_piece(std::string_view piece, std::vector<TokenId>& ids) const;
  /// Number of bytes that have no token of their own.
  std::int64_t count_lost_bytes(std::string_view text) const;

  /// The bytes a token stands for; "" for an unused id.
  std::string_view bytes_of(TokenId id) const {
    const auto index = static_cast<std::size_t>(id);
    return std::string_view(arena_).substr(offsets_[index], offsets_[index + 1] - offsets_[index]);
  }
  /// The token of exactly these bytes.
  std::optional<TokenId> find(std::string_view bytes) const;
  std::int64_t num_ids() const noexcept { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  /// Bytes (0-255) that no token stands for.
  const std::vector<std::uint8_t>& missing_bytes() const noexcept { return missing_bytes_; }

 private:
  /// A merge: the ids of both sides, its rank, and what it makes. An empty slot has rank kNoMerge.
  struct Merge {
    TokenId left = -1, right = -1;
    std::int32_t rank = 0;
    TokenId result = -1;
  };
  /// A slot of the table of tokens by their bytes. `hash` saves most comparisons of bytes.
  struct TokenSlot {
    std::uint32_t hash = 0;
    TokenId id = -1;
  };
  struct Symbol {
    TokenId id = -1;
    std::int32_t rank = 0;  ///< of the merge with the next symbol
    TokenId merged = -1;    ///< what that merge makes
  };

  void fill_tokens(const ByteBpeParts& parts, const std::string& where);
  void add_token(std::string_view bytes, TokenId id, const std::string& where);
  void fill_merges(const ByteBpeParts& parts, const std::string& where);
  void find_whole_tokens(bool ignore_merges);
  void add_merge(const Merge& merge);
  const Merge& find_merge(TokenId left, TokenId right) const;
  void rank_pair(Symbol& left, TokenId right) const;
  template <class Append>
  void for_each_symbol(std::string_view piece, Append append) const;
  void merge_piece(std::string_view piece, std::vector<TokenId>& ids) const;
  void merge_long_piece(std::string_view piece, std::vector<TokenId>& ids) const;

  std::string arena_;                    // the bytes of all tokens
  std::vector<std::uint32_t> offsets_;   // num_ids + 1 places in arena_
  std::vector<TokenSlot> token_table_;   // open addressing, a power of two in size
  std::vector<Merge> merge_table_;       // likewise
  std::vector<bool> is_whole_;           // encoding the token's bytes gives just this token
  std::array<TokenId, 256> byte_ids_{};  // -1: missing
  std::vector<std::uint8_t> missing_bytes_;
  std::optional<TokenId> unk_id_;
  bool fuse_unk_ = false;
};

}  // namespace dagmoe
