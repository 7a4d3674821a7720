#include "data/tokenizer_added_tokens.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

bool is_space(char32_t code_point) {
  return code_point != kInvalidCodePoint && char_class_table()[code_point] == CharClass::kSpace;
}

bool starts_with_word_char(std::string_view text) { return !text.empty() && is_word_char(decode_utf8(text, 0).value); }

/// Where the last character of a non-empty text begins.
std::size_t last_char(std::string_view text) {
  std::size_t position = text.size() - 1;
  while (position > 0 && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80) --position;
  return position;
}

bool ends_with_word_char(std::string_view text) {
  return !text.empty() && is_word_char(decode_utf8(text, last_char(text)).value);
}

std::size_t leading_space(std::string_view text) {
  std::size_t size = 0;
  while (size < text.size()) {
    const Utf8Char c = decode_utf8(text, size);
    if (!is_space(c.value)) break;
    size += c.length;
  }
  return size;
}

std::size_t start_of_trailing_space(std::string_view text) {
  std::size_t size = text.size();
  while (size > 0) {
    const std::size_t start = last_char(text.substr(0, size));
    if (!is_space(decode_utf8(text, start).value)) break;
    size = start;
  }
  return size;
}

bool read_flag(const Json& object, std::string_view key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) return false;
  if (!found->is_boolean()) throw InputError(str(where, ": '", key, "': expected true or false"));
  return found->get<bool>();
}

}  // namespace

AddedToken read_added_token(const Json& object, TokenId id, const std::string& where) {
  if (!object.is_object()) throw InputError(where + ": expected an object with 'content'");
  return {.id = id,
          .content = json_string(object, "content", where),
          .special = read_flag(object, "special", where),
          .normalized = read_flag(object, "normalized", where),
          .single_word = read_flag(object, "single_word", where),
          .lstrip = read_flag(object, "lstrip", where),
          .rstrip = read_flag(object, "rstrip", where)};
}

std::vector<AddedToken> read_added_tokens(const TokenizerJson& document) {
  std::vector<AddedToken> tokens;
  const auto list = document.settings.find("added_tokens");
  if (list == document.settings.end() || list->is_null()) return tokens;
  const std::string where = document.where + ": added_tokens";
  for (const Json& item : *list) {
    if (!item.is_object()) throw InputError(where + ": expected objects");
    const std::int64_t id = json_int(item, "id", where);
    if (id < 0 || id > kMaxTokenId) throw InputError(str(where, ": id ", id, " is out of range"));
    tokens.push_back(read_added_token(item, static_cast<TokenId>(id), where));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  const auto first_byte = [](const AddedToken& token) { return static_cast<unsigned char>(token.content.front()); };
  std::stable_sort(tokens_.begin(), tokens_.end(), [&](const AddedToken& a, const AddedToken& b) {
    if (first_byte(a) != first_byte(b)) return first_byte(a) < first_byte(b);
    return a.content.size() > b.content.size();
  });
  for (std::uint32_t i = 0; i < tokens_.size(); ++i) {
    Bucket& bucket = buckets_[first_byte(tokens_[i])];
    if (bucket.end == 0) bucket.begin = i;
    bucket.end = i + 1;
  }
  if (!tokens_.empty() && first_byte(tokens_.front()) == first_byte(tokens_.back())) {
    single_first_byte_ = first_byte(tokens_.front());
  }
}

const AddedToken* AddedTokenMatcher::match_at(std::string_view text, std::size_t position) const {
  const Bucket& bucket = buckets_[static_cast<unsigned char>(text[position])];
  for (std::uint32_t i = bucket.begin; i < bucket.end; ++i) {
    if (text.substr(position).starts_with(tokens_[i].content)) return &tokens_[i];
  }
  return nullptr;
}

std::size_t AddedTokenMatcher::next_candidate(std::string_view text, std::size_t position) const {
  if (single_first_byte_ >= 0) {
    const void* found = std::memchr(text.data() + position, single_first_byte_, text.size() - position);
    return found ? static_cast<std::size_t>(static_cast<const char*>(found) - text.data()) : text.size();
  }
  while (position < text.size() && buckets_[static_cast<unsigned char>(text[position])].end == 0) ++position;
  return position;
}

void AddedTokenMatcher::split(std::string_view text, bool parse_special, std::vector<TextStretch>& stretches) const {
  std::size_t done = 0;
  const auto add_text_until = [&](std::size_t end) {
    if (end > done) stretches.push_back({.text = text.substr(done, end - done)});
  };
  for (std::size_t position = 0; !tokens_.empty() && position < text.size();) {
    position = next_candidate(text, position);
    if (position >= text.size()) break;
    const AddedToken* token = match_at(text, position);
    if (token == nullptr) {
      ++position;
      continue;
    }
    std::size_t start = position, stop = position + token->content.size();
    position = stop;
    if (token->special && !parse_special) continue;
    if (token->single_word &&
        (ends_with_word_char(text.substr(0, start)) || starts_with_word_char(text.substr(stop)))) {
      continue;
    }
    if (token->lstrip) start = std::max(start_of_trailing_space(text.substr(0, start)), done);
    if (token->rstrip) stop += leading_space(text.substr(stop));
    add_text_until(start);
    stretches.push_back({.text = text.substr(start, stop - start), .added_id = token->id});
    done = stop;
  }
  add_text_until(text.size());
}

}  // namespace dagmoe
