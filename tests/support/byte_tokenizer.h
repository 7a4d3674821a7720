// A tokenizer whose ids can be read with the naked eye: one token a byte, and four control tokens.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

inline constexpr TokenId kByteBos = 256, kByteEos = 257, kByteImStart = 258, kByteImEnd = 259;

struct ByteTokenizerOptions {
  bool adds_bos = false, adds_eos = false;
  bool has_eos = true;
  bool dummy_prefix = false;  ///< a space before text that continues nothing, as sentencepiece does
};

class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(ByteTokenizerOptions options = {}) : options_(options) {}

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const override {
    std::vector<TokenId> ids;
    if (options.add_bos) ids.push_back(kByteBos);
    if (options_.dummy_prefix && !options.continues && !text.empty()) ids.push_back(' ');
    while (!text.empty()) {
      const std::optional<TokenId> control = options.parse_special ? control_at(text) : std::nullopt;
      ids.push_back(control ? *control : static_cast<unsigned char>(text.front()));
      text.remove_prefix(control ? name_of(*control).size() : 1);
    }
    if (options.add_eos) ids.push_back(kByteEos);
    return ids;
  }
  std::string decode(std::span<const TokenId> ids, bool keep_special = false) const override {
    std::string text;
    for (const TokenId id : ids) {
      if (id < kByteBos || keep_special) text += token_bytes(id);
    }
    return text;
  }
  std::string token_bytes(TokenId id) const override {
    return id < kByteBos ? std::string(1, static_cast<char>(id)) : std::string(name_of(id));
  }
  std::optional<TokenId> bos_id() const noexcept override { return kByteBos; }
  std::optional<TokenId> eos_id() const noexcept override {
    return options_.has_eos ? std::optional<TokenId>(kByteEos) : std::nullopt;
  }
  std::optional<TokenId> id_of(std::string_view token) const override {
    const std::optional<TokenId> control = control_at(token);
    if (control && name_of(*control) == token) return control;
    if (token.size() == 1) return static_cast<unsigned char>(token.front());
    return std::nullopt;
  }
  std::int64_t count_lost_bytes(std::string_view) const override { return 0; }
  std::int64_t vocab_size() const noexcept override { return kByteImEnd + 1; }
  bool adds_bos() const noexcept override { return options_.adds_bos; }
  bool adds_eos() const noexcept override { return options_.adds_eos; }
  std::string description() const override { return "bytes, for tests"; }

 private:
  static constexpr std::array<std::string_view, 4> kNames = {"<s>", "</s>", "<|im_start|>", "<|im_end|>"};
  static std::string_view name_of(TokenId id) { return kNames.at(static_cast<std::size_t>(id - kByteBos)); }
  static std::optional<TokenId> control_at(std::string_view text) {
    for (TokenId id = kByteBos; id <= kByteImEnd; ++id) {
      if (text.starts_with(name_of(id))) return id;
    }
    return std::nullopt;
  }

  ByteTokenizerOptions options_;
};

}  // namespace dagmoe
