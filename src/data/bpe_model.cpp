#include "data/bpe_model.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <queue>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

constexpr std::int32_t kNoMerge = std::numeric_limits<std::int32_t>::max();
/// Up to here a scan over all pairs beats a heap.
constexpr std::size_t kShortPiece = 64;

bool stands_for_itself(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/// The character of every byte.
std::array<char32_t, 256> make_byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) alphabet[byte] = stands_for_itself(byte) ? byte : next++;
  return alphabet;
}

/// The byte of every character below U+0144, -1 for those outside the alphabet.
constexpr char32_t kAlphabetEnd = 0x100 + 68;
std::array<int, kAlphabetEnd> make_inverse_alphabet() {
  std::array<int, kAlphabetEnd> inverse{};
  inverse.fill(-1);
  const auto alphabet = make_byte_alphabet();
  for (int byte = 0; byte < 256; ++byte) inverse[alphabet[static_cast<std::size_t>(byte)]] = byte;
  return inverse;
}

std::uint64_t mix(std::uint64_t value) {
  value *= 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio
  return value ^ (value >> 32);
}

std::uint32_t hash_bytes(std::string_view bytes) {
  std::uint64_t hash = bytes.size();
  std::size_t position = 0;
  for (; position + 8 <= bytes.size(); position += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + position, 8);
    hash = mix(hash ^ word);
  }
  std::uint64_t rest = 0;
  for (std::size_t i = position; i < bytes.size(); ++i) rest = (rest << 8) | static_cast<unsigned char>(bytes[i]);
  return static_cast<std::uint32_t>(mix(mix(hash ^ rest)));
}

std::size_t hash_pair(TokenId left, TokenId right) {
  const auto key =
      (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
  return static_cast<std::size_t>(mix(key));
}

/// At most half of an open-addressing table is in use.
std::size_t table_size(std::size_t num_entries) { return std::bit_ceil(2 * num_entries + 2); }

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  static const auto alphabet = make_byte_alphabet();
  std::string spelled;
  for (const char c : bytes) append_utf8(spelled, alphabet[static_cast<unsigned char>(c)]);
  return spelled;
}

std::optional<std::string> from_byte_alphabet(std::string_view spelled) {
  static const auto inverse = make_inverse_alphabet();
  std::string bytes;
  for (std::size_t position = 0; position < spelled.size();) {
    const Utf8Char c = decode_utf8(spelled, position);
    if (c.value >= kAlphabetEnd || inverse[c.value] < 0) return std::nullopt;
    bytes += static_cast<char>(inverse[c.value]);
    position += c.length;
  }
  return bytes;
}

std::optional<std::uint8_t> fallback_byte(std::string_view spelled) {
  if (spelled.size() != 6 || !spelled.starts_with("<0x") || spelled[5] != '>') return std::nullopt;
  unsigned value = 0;
  for (const char c : spelled.substr(3, 2)) {
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit && (c < 'A' || c > 'F')) return std::nullopt;
    value = value * 16 + static_cast<unsigned>(is_digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<std::uint8_t>(value);
}

BpeModel::BpeModel(const BpeParts& parts, const std::string& where)
    : symbols_(parts.symbols), unk_id_(parts.unk_id), fuse_unk_(parts.fuse_unk) {
  fill_tokens(parts, where);
  fallback_ids_.fill(-1);
  for (std::size_t i = 0; parts.byte_fallback && i < parts.tokens.size(); ++i) {
    if (const auto byte = fallback_byte(parts.tokens[i])) fallback_ids_[*byte] = static_cast<TokenId>(i);
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = find({&c, 1}).value_or(-1);
    const TokenId id = symbols_ == BpeSymbols::kBytes ? byte_ids_[byte] : fallback_ids_[byte];
    if (id < 0) missing_bytes_.push_back(static_cast<std::uint8_t>(byte));
  }
  fill_merges(parts, where);
  find_whole_tokens(parts.ignore_merges);
}

std::optional<std::string> BpeModel::bytes_of_spelling(std::string_view spelled) const {
  std::optional<std::string> bytes =
      symbols_ == BpeSymbols::kBytes ? from_byte_alphabet(spelled) : std::string(spelled);
  return bytes && !bytes->empty() ? bytes : std::nullopt;
}

void BpeModel::fill_tokens(const BpeParts& parts, const std::string& where) {
  token_table_.resize(table_size(parts.tokens.size()));
  offsets_.reserve(parts.tokens.size() + 1);
  offsets_.push_back(0);
  for (const std::string& spelled : parts.tokens) {
    arena_ += bytes_of_spelling(spelled).value_or(spelled);
    if (arena_.size() > std::numeric_limits<std::uint32_t>::max()) {
      throw InputError(str(where, ": the tokens have more than 4 GB of text"));
    }
    offsets_.push_back(static_cast<std::uint32_t>(arena_.size()));
  }
  for (std::size_t i = 0; i < parts.tokens.size(); ++i) {
    // Tokens that are spelled with other characters (added ones, mostly) never come out of bytes.
    const std::optional<std::string> bytes = bytes_of_spelling(parts.tokens[i]);
    if (bytes) add_token(*bytes, static_cast<TokenId>(i), where);
  }
}

void BpeModel::add_token(std::string_view bytes, TokenId id, const std::string& where) {
  if (const std::optional<TokenId> other = find(bytes)) {
    const std::string spelled = symbols_ == BpeSymbols::kBytes ? to_byte_alphabet(bytes) : std::string(bytes);
    throw InputError(str(where, ": token ", quoted_for_message(spelled), " has two ids, ", *other, " and ", id));
  }
  const std::uint32_t hash = hash_bytes(bytes);
  std::size_t slot = hash & (token_table_.size() - 1);
  while (token_table_[slot].id >= 0) slot = (slot + 1) & (token_table_.size() - 1);
  token_table_[slot] = {.hash = hash, .id = id};
}

std::optional<TokenId> BpeModel::find(std::string_view bytes) const {
  const std::uint32_t hash = hash_bytes(bytes);
  for (std::size_t slot = hash & (token_table_.size() - 1);; slot = (slot + 1) & (token_table_.size() - 1)) {
    const TokenSlot& entry = token_table_[slot];
    if (entry.id < 0) return std::nullopt;
    if (entry.hash == hash && bytes_of(entry.id) == bytes) return entry.id;
  }
}

void BpeModel::fill_merges(const BpeParts& parts, const std::string& where) {
  merge_table_.assign(table_size(parts.merges.size()), Merge{.rank = kNoMerge});
  const auto id_of_part = [&](const std::string& spelled, std::size_t index) {
    const std::optional<std::string> bytes = bytes_of_spelling(spelled);
    const std::optional<TokenId> id = bytes ? find(*bytes) : std::nullopt;
    if (!id) {
      throw InputError(str(where, ": merge ", index + 1, " (", quoted_for_message(parts.merges[index].first), " + ",
                           quoted_for_message(parts.merges[index].second), "): ", quoted_for_message(spelled),
                           " is not in the vocabulary"));
    }
    return *id;
  };
  for (std::size_t i = 0; i < parts.merges.size(); ++i) {
    const auto& [left, right] = parts.merges[i];
    add_merge({.left = id_of_part(left, i),
               .right = id_of_part(right, i),
               .rank = static_cast<std::int32_t>(i),
               .result = id_of_part(left + right, i)});
  }
}

void BpeModel::add_merge(const Merge& merge) {
  const std::size_t mask = merge_table_.size() - 1;
  std::size_t slot = hash_pair(merge.left, merge.right) & mask;
  const auto is_other = [&merge](const Merge& entry) {
    return entry.rank != kNoMerge && (entry.left != merge.left || entry.right != merge.right);
  };
  while (is_other(merge_table_[slot])) slot = (slot + 1) & mask;
  merge_table_[slot] = merge;  // of equal pairs the last one counts, as in Hugging Face's map
}

const BpeModel::Merge& BpeModel::find_merge(TokenId left, TokenId right) const {
  const std::size_t mask = merge_table_.size() - 1;
  for (std::size_t slot = hash_pair(left, right) & mask;; slot = (slot + 1) & mask) {
    const Merge& entry = merge_table_[slot];
    if (entry.rank == kNoMerge || (entry.left == left && entry.right == right)) return entry;
  }
}

void BpeModel::find_whole_tokens(bool ignore_merges) {
  is_whole_.assign(offsets_.size(), false);
  std::vector<TokenId> ids;
  for (const TokenSlot& entry : token_table_) {
    if (entry.id < 0) continue;
    ids.clear();
    if (!ignore_merges) merge_piece(bytes_of(entry.id), ids);
    is_whole_[static_cast<std::size_t>(entry.id)] = ignore_merges || (ids.size() == 1 && ids.front() == entry.id);
  }
}

void BpeModel::append_piece(std::string_view piece, std::vector<TokenId>& ids) const {
  const std::optional<TokenId> whole = find(piece);
  if (whole && is_whole_[static_cast<std::size_t>(*whole)]) {
    ids.push_back(*whole);
  } else {
    merge_piece(piece, ids);
  }
}

std::int64_t BpeModel::count_lost_bytes(std::string_view text) const {
  if (symbols_ == BpeSymbols::kBytes) {
    return std::count_if(text.begin(), text.end(),
                         [this](char c) { return byte_ids_[static_cast<unsigned char>(c)] < 0; });
  }
  std::int64_t count = 0;
  for (std::size_t position = 0; position < text.size();) {
    const std::string_view character = text.substr(position, decode_utf8(text, position).length);
    if (!find(character) && !append_fallback(character, [](TokenId) {})) {
      count += static_cast<std::int64_t>(character.size());
    }
    position += character.size();
  }
  return count;
}

template <class Append>
bool BpeModel::append_fallback(std::string_view character, Append append) const {
  const auto id_of = [this](char c) { return fallback_ids_[static_cast<unsigned char>(c)]; };
  if (std::any_of(character.begin(), character.end(), [&](char c) { return id_of(c) < 0; })) return false;
  for (const char c : character) append(id_of(c));
  return true;
}

template <class Append>
void BpeModel::for_each_char(std::string_view piece, Append append) const {
  // Hugging Face holds an unknown token back until the next known character, so the bytes of a fallback overtake it.
  bool has_unknown = false;
  const auto flush = [&] {
    if (has_unknown) append(*unk_id_);
    has_unknown = false;
  };
  for (std::size_t position = 0; position < piece.size();) {
    const auto byte = static_cast<unsigned char>(piece[position]);
    const std::string_view character = piece.substr(position, byte < 0x80 ? 1 : decode_utf8(piece, position).length);
    const TokenId id = byte < 0x80 ? byte_ids_[byte] : find(character).value_or(-1);
    position += character.size();
    if (id >= 0) {
      flush();
      append(id);
    } else if (!append_fallback(character, append) && unk_id_) {
      if (!fuse_unk_) flush();
      has_unknown = true;
    }
  }
  flush();
}

template <class Append>
void BpeModel::for_each_symbol(std::string_view piece, Append append) const {
  if (symbols_ == BpeSymbols::kChars) return for_each_char(piece, append);
  bool after_unknown = false;
  for (const char c : piece) {
    const TokenId id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) {
      append(id);
    } else if (unk_id_ && !(fuse_unk_ && after_unknown)) {
      append(*unk_id_);
    }
    after_unknown = id < 0;
  }
}

void BpeModel::rank_pair(Symbol& left, TokenId right) const {
  const Merge& merge = find_merge(left.id, right);
  left.rank = merge.rank;
  left.merged = merge.result;
}

void BpeModel::merge_piece(std::string_view piece, std::vector<TokenId>& ids) const {
  if (piece.size() > kShortPiece) return merge_long_piece(piece, ids);
  std::array<Symbol, kShortPiece> symbols;
  std::size_t size = 0;
  for_each_symbol(piece, [&](TokenId id) { symbols[size++] = {.id = id, .rank = kNoMerge}; });
  for (std::size_t i = 0; i + 1 < size; ++i) rank_pair(symbols[i], symbols[i + 1].id);
  while (size > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < size; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoMerge) break;
    symbols[best].id = symbols[best].merged;
    symbols[best].rank = kNoMerge;
    --size;
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<std::ptrdiff_t>(size) + 1,
              symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    if (best + 1 < size) rank_pair(symbols[best], symbols[best + 1].id);
    if (best > 0) rank_pair(symbols[best - 1], symbols[best].id);
  }
  for (std::size_t i = 0; i < size; ++i) ids.push_back(symbols[i].id);
}

void BpeModel::merge_long_piece(std::string_view piece, std::vector<TokenId>& ids) const {
  struct Node {
    TokenId id;
    std::int64_t previous, next;  // -1 at the ends
  };
  struct Candidate {
    std::int32_t rank;
    std::int64_t left;
    TokenId left_id, right_id, result;
    bool operator<(const Candidate& other) const {  // the best one is on top of the heap
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Node> nodes;
  for_each_symbol(piece, [&nodes](TokenId id) {
    const auto index = static_cast<std::int64_t>(nodes.size());
    nodes.push_back({.id = id, .previous = index - 1, .next = index + 1});
  });
  if (nodes.empty()) return;
  nodes.back().next = -1;
  const auto node = [&nodes](std::int64_t index) -> Node& { return nodes[static_cast<std::size_t>(index)]; };
  std::priority_queue<Candidate> candidates;
  const auto add_candidate = [&](std::int64_t left) {
    if (left < 0 || node(left).next < 0) return;
    const Merge& merge = find_merge(node(left).id, node(node(left).next).id);
    if (merge.rank == kNoMerge) return;
    candidates.push({merge.rank, left, merge.left, merge.right, merge.result});
  };
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(nodes.size()); ++i) add_candidate(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Node& left = node(best.left);
    // Merged away (id -1), or either side has changed since.
    if (left.id != best.left_id || left.next < 0 || node(left.next).id != best.right_id) continue;
    Node& right = node(left.next);
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) node(left.next).previous = best.left;
    add_candidate(best.left);
    add_candidate(left.previous);
  }
  for (std::int64_t i = 0; i >= 0; i = node(i).next) ids.push_back(node(i).id);
}

}  // namespace dagmoe
