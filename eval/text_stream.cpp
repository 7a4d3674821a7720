#include "eval/text_stream.h"

#include <algorithm>
#include <utility>

#include "data/unicode.h"

namespace dagmoe {
namespace {

// Bytes at the end of `text` that begin a character whose rest is missing.
std::size_t incomplete_tail(std::string_view text) {
  for (std::size_t length = 1; length <= std::min<std::size_t>(3, text.size()); ++length) {
    const auto byte = static_cast<unsigned char>(text[text.size() - length]);
    if ((byte & 0xC0u) == 0x80u) continue;  // a continuation: the lead byte is further left
    const std::size_t needed = byte >= 0xF0u ? 4 : byte >= 0xE0u ? 3 : byte >= 0xC0u ? 2 : 1;
    return needed > length ? length : 0;
  }
  return 0;
}

// Bytes at the end of `text` with which `stop` begins.
std::size_t stop_tail(std::string_view text, std::string_view stop) {
  for (std::size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
    : tokenizer_(tokenizer), stop_(std::move(stop)) {
  std::erase(stop_, "");
}

std::string TextStream::push(TokenId id) {
  if (stopped_) return {};
  const bool is_control = tokenizer_.decode({&id, 1}) != tokenizer_.decode({&id, 1}, /*keep_special=*/true);
  if (is_control) return {};
  held_ += tokenizer_.token_bytes(id);
  for (const std::string& stop : stop_) {
    const std::size_t place = held_.find(stop);
    if (place == std::string::npos) continue;
    held_.resize(place);
    stopped_ = true;
  }
  if (stopped_) return finish();
  std::size_t tail = incomplete_tail(held_);
  for (const std::string& stop : stop_) tail = std::max(tail, stop_tail(held_, stop));
  return show(held_.size() - tail);
}

std::string TextStream::finish() { return show(held_.size()); }

std::string TextStream::show(std::size_t num_bytes) {
  std::string piece = replace_invalid_utf8(std::string_view(held_).substr(0, num_bytes));
  held_.erase(0, num_bytes);
  shown_ += piece;
  return piece;
}

}  // namespace dagmoe
