#include "data/unigram_model.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "data/bpe_model.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

/// What an unknown character costs below the worst piece; sentencepiece's kUnkPenalty.
constexpr float kUnknownPenalty = 10.0F;

/// Walks over the fields of a protocol buffer message.
class WireReader {
 public:
  WireReader(std::string_view bytes, const std::string& where) : rest_(bytes), where_(where) {}

  /// Moves to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const std::uint64_t key = read_varint();
    field_ = key >> 3;
    text_ = {};
    switch (key & 7) {
      case 0:
        number_ = read_varint();
        return true;
      case 1:
        text_ = take(8);
        return true;
      case 2:
        text_ = take(read_varint());
        return true;
      case 5:
        text_ = take(4);
        return true;
      default:
        refuse();
    }
  }
  std::uint64_t field() const { return field_; }
  std::uint64_t number() const { return number_; }
  std::string_view text() const { return text_; }  ///< a text, a message, or the bytes of a float
  float real() const {
    float value = 0.0F;
    if (text_.size() != sizeof value) refuse();
    std::memcpy(&value, text_.data(), sizeof value);
    return value;
  }

 private:
  [[noreturn]] void refuse() const {
    throw InputError(where_ + ": is no sentencepiece model; is the download complete?");
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) refuse();
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::uint64_t read_varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    refuse();
  }

  std::string_view rest_, text_;
  std::uint64_t field_ = 0, number_ = 0;
  const std::string& where_;
};

SentencePiece read_piece(std::string_view bytes, const std::string& where) {
  SentencePiece piece;
  for (WireReader reader(bytes, where); reader.next();) {
    if (reader.field() == 1) piece.text = reader.text();
    if (reader.field() == 2) piece.score = reader.real();
    if (reader.field() == 3) piece.type = static_cast<SentencePiece::Type>(reader.number());
  }
  return piece;
}

}  // namespace

SentencePieceFile read_sentencepiece_file(std::string_view bytes, const std::string& where) {
  SentencePieceFile file;
  for (WireReader reader(bytes, where); reader.next();) {
    if (reader.field() == 1) file.pieces.push_back(read_piece(reader.text(), where));
    if (reader.field() != 2) continue;  // trainer_spec
    for (WireReader spec(reader.text(), where); spec.next();) {
      if (spec.field() == 3) file.is_unigram = spec.number() == 1;
      if (spec.field() == 35) file.byte_fallback = spec.number() != 0;
    }
  }
  return file;
}

UnigramModel::UnigramModel(SentencePieceFile file) : file_(std::move(file)), byte_ids_(256, -1) {
  using Type = SentencePiece::Type;
  float min_score = std::numeric_limits<float>::max(), max_score = std::numeric_limits<float>::lowest();
  for (const SentencePiece& piece : file_.pieces) {
    if (piece.type != Type::kNormal) continue;
    min_score = std::min(min_score, piece.score);
    max_score = std::max(max_score, piece.score);
  }
  unk_score_ = min_score - kUnknownPenalty;
  for (std::size_t i = 0; i < file_.pieces.size(); ++i) {
    const SentencePiece& piece = file_.pieces[i];
    const auto id = static_cast<TokenId>(i);
    if (piece.type == Type::kUnknown) unk_id_ = id;
    if (const auto byte = fallback_byte(piece.text); piece.type == Type::kByte && byte) byte_ids_[*byte] = id;
    if (piece.type == Type::kNormal) entries_.push_back({.text = piece.text, .score = piece.score, .id = id});
    if (piece.type == Type::kUserDefined) {  // so good that it is always taken
      const auto bonus = static_cast<float>(static_cast<float>(piece.text.size()) * max_score - 0.1);
      entries_.push_back({.text = piece.text, .score = bonus, .id = id});
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
}

void UnigramModel::find_steps(std::string_view text, std::vector<Step>& steps) const {
  steps.assign(text.size() + 1, Step{});
  const auto offer = [&steps](std::size_t start, std::size_t end, float score, TokenId id) {
    const float sum = steps[start].score + score;
    Step& step = steps[end];
    if (step.start < 0 || sum > step.score) step = {.score = sum, .start = static_cast<std::int64_t>(start), .id = id};
  };
  for (std::size_t start = 0, length = 0; start < text.size(); start += length) {
    length = decode_utf8(text, start).length;
    bool has_single = false;
    // The entries that begin with text[start, end), narrowed down byte by byte.
    auto first = entries_.begin(), last = entries_.end();
    for (std::size_t end = start + 1; end <= text.size() && first != last; ++end) {
      const std::size_t offset = end - start - 1;
      const auto byte = static_cast<unsigned char>(text[end - 1]);
      const auto byte_of = [offset](const Entry& entry) {
        return entry.text.size() <= offset ? -1 : static_cast<int>(static_cast<unsigned char>(entry.text[offset]));
      };
      first = std::partition_point(first, last, [&](const Entry& entry) { return byte_of(entry) < byte; });
      last = std::partition_point(first, last, [&](const Entry& entry) { return byte_of(entry) == byte; });
      if (first == last || first->text.size() != end - start) continue;
      offer(start, end, first->score, first->id);
      has_single = has_single || end - start == length;
    }
    if (!has_single) offer(start, start + length, unk_score_, unk_id_);
  }
}

void UnigramModel::append_unknown(std::string_view text, std::vector<TokenId>& ids) const {
  const auto id_of = [this](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
  if (!file_.byte_fallback || std::any_of(text.begin(), text.end(), [&](char c) { return id_of(c) < 0; })) {
    ids.push_back(unk_id_);
    return;
  }
  for (const char c : text) ids.push_back(id_of(c));
}

void UnigramModel::append(std::string_view normalized, std::vector<TokenId>& ids) const {
  std::vector<Step> steps, path;
  find_steps(normalized, steps);
  for (auto end = static_cast<std::int64_t>(normalized.size()); end > 0; end = path.back().start) {
    path.push_back(steps[static_cast<std::size_t>(end)]);
  }
  std::reverse(path.begin(), path.end());
  for (std::size_t i = 0; i < path.size();) {
    if (path[i].id != unk_id_) {
      ids.push_back(path[i++].id);
      continue;
    }
    const std::int64_t start = path[i].start;  // neighbouring unknown characters are one
    while (i < path.size() && path[i].id == unk_id_) ++i;
    const std::int64_t end = i < path.size() ? path[i].start : static_cast<std::int64_t>(normalized.size());
    append_unknown(normalized.substr(static_cast<std::size_t>(start), static_cast<std::size_t>(end - start)), ids);
  }
}

}  // namespace dagmoe
