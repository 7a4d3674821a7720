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

/// The byte a token of sentencepiece's byte fallback stands for ("<0x0A>"); nullopt for any other spelling.
std::optional<std::uint8_t> fallback_byte(std::string_view spelled);

/// What merging starts from.
enum class BpeSymbols {
  kBytes,  ///< every byte, spelled in the byte alphabet (GPT-2 and its heirs)
  kChars,  ///< every character, spelled as it is (models converted from sentencepiece)
};

/// What a model of type BPE in tokenizer.json says.
struct BpeParts {
  BpeSymbols symbols = BpeSymbols::kBytes;
  std::vector<std::string> tokens;                          ///< spelling by id; "" where an id is unused
  std::vector<std::pair<std::string, std::string>> merges;  ///< spelled as the tokens are, best first
  std::optional<TokenId> unk_id;                            ///< stands for symbols that have no token
  bool fuse_unk = false;                                    ///< one unknown token for a run of such symbols
  bool byte_fallback = false;                               ///< kChars: "<0x0A>", ... stand for unknown characters
  bool ignore_merges = false;                               ///< a piece that is a token as a whole needs no merges
};

/// Byte pair encoding of the pieces that a pre-tokenizer made. Immutable, so threads may share one.
class BpeModel {
 public:
  /// Throws InputError, with `where` in front, for a token given twice and for merges whose parts
  /// or result are not in the vocabulary.
  BpeModel(const BpeParts& parts, const std::string& where);

  /// Appends the ids of one piece: repeatedly joins the adjacent pair of the best merge, leftmost first. Symbols
  /// without a token are dropped when there is no unknown token, as Hugging Face does. kChars wants valid UTF-8.
  void append_piece(std::string_view piece, std::vector<TokenId>& ids) const;
  /// Number of bytes of symbols that have no token of their own.
  std::int64_t count_lost_bytes(std::string_view text) const;

  /// The bytes that make this token (for kChars its spelling); "" for an unused id.
  std::string_view bytes_of(TokenId id) const {
    const auto index = static_cast<std::size_t>(id);
    return std::string_view(arena_).substr(offsets_[index], offsets_[index + 1] - offsets_[index]);
  }
  /// The token of exactly these bytes.
  std::optional<TokenId> find(std::string_view bytes) const;
  std::int64_t num_ids() const noexcept { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  /// kBytes: the bytes (0-255) that no token stands for. kChars: those without a token for the fallback.
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

  std::optional<std::string> bytes_of_spelling(std::string_view spelled) const;
  void fill_tokens(const BpeParts& parts, const std::string& where);
  void add_token(std::string_view bytes, TokenId id, const std::string& where);
  void fill_merges(const BpeParts& parts, const std::string& where);
  void find_whole_tokens(bool ignore_merges);
  void add_merge(const Merge& merge);
  const Merge& find_merge(TokenId left, TokenId right) const;
  void rank_pair(Symbol& left, TokenId right) const;
  template <class Append>
  void for_each_symbol(std::string_view piece, Append append) const;
  template <class Append>
  void for_each_char(std::string_view piece, Append append) const;
  template <class Append>
  bool append_fallback(std::string_view character, Append append) const;
  void merge_piece(std::string_view piece, std::vector<TokenId>& ids) const;
  void merge_long_piece(std::string_view piece, std::vector<TokenId>& ids) const;

  std::string arena_;                   // the bytes of all tokens
  std::vector<std::uint32_t> offsets_;  // num_ids + 1 places in arena_
  std::vector<TokenSlot> token_table_;  // open addressing, a power of two in size
  std::vector<Merge> merge_table_;      // likewise
  std::vector<bool> is_whole_;          // encoding the token's bytes gives just this token
  // kBytes: the token of every byte. kChars: of every ASCII character. -1: missing
  std::array<TokenId, 256> byte_ids_{};
  std::array<TokenId, 256> fallback_ids_{};  // kChars: the token that stands for a byte, -1: none
  std::vector<std::uint8_t> missing_bytes_;
  BpeSymbols symbols_;
  std::optional<TokenId> unk_id_;
  bool fuse_unk_ = false;
};

}  // namespace dagmoe
