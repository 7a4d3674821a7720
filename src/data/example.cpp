#include "data/example.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

/// Control tokens are those that decoding leaves out.
bool is_control(const Tokenizer& tokenizer, TokenId id) {
  return tokenizer.decode({&id, 1}).empty() && !tokenizer.decode({&id, 1}, /*keep_special=*/true).empty();
}

bool has_control(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  return std::ranges::any_of(ids, [&tokenizer](TokenId id) { return is_control(tokenizer, id); });
}

}  // namespace

std::int64_t Example::num_targets() const {
  if (loss_mask.empty()) return 0;
  return std::count_if(loss_mask.begin() + 1, loss_mask.end(), [](std::uint8_t mask) { return mask != 0; });
}

Example make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, std::int64_t max_seq_len) {
  const auto limit = static_cast<std::size_t>(max_seq_len);
  Example example;
  const auto append = [&](std::span<const TokenId> ids, bool is_supervised) {
    example.tokens.insert(example.tokens.end(), ids.begin(), ids.end());
    example.loss_mask.resize(example.tokens.size(), is_supervised ? 1 : 0);
  };
  bool has_text = false, after_control = false;
  for (const PromptPiece& piece : pieces) {
    if (example.tokens.size() > limit) break;  // the rest is cut anyway
    const std::vector<TokenId> ids = tokenizer.encode(piece.text, {.add_bos = false,
                                                                   .add_eos = false,
                                                                   .parse_special = piece.is_template,
                                                                   .continues = has_text && !after_control,
                                                                   .after_control = after_control});
    if (!ids.empty()) after_control = piece.is_template && is_control(tokenizer, ids.back());
    // A template may write BOS itself; it is there once all the same.
    const std::optional<TokenId> bos = tokenizer.bos_id();
    if (!has_text && !ids.empty() && tokenizer.adds_bos() && bos && ids.front() != *bos) append({&*bos, 1}, false);
    has_text = has_text || !ids.empty();
    append(ids, piece.is_supervised);
    if (!piece.ends_turn) continue;
    const std::optional<TokenId> eos = tokenizer.eos_id();
    if (!eos)
      throw InputError("the tokenizer has no EOS token, which ends an answer; set eos_token in tokenizer_config.json");
    append({&*eos, 1}, piece.is_supervised);
    after_control = true;
  }
  example.truncated = example.tokens.size() > limit;
  if (example.truncated) {
    example.tokens.resize(limit);
    example.loss_mask.resize(limit);
  }
  return example;
}

std::optional<Example> make_joined_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces) {
  std::string text;
  std::vector<std::pair<std::size_t, bool>> edges;  // where a stretch ends, and whether it is learnt
  const std::optional<TokenId> eos = tokenizer.eos_id();
  for (const PromptPiece& piece : pieces) {
    if (!piece.is_template && has_control(tokenizer, tokenizer.encode(piece.text))) return std::nullopt;
    text += piece.text;
    if (piece.ends_turn) {
      if (!eos) return std::nullopt;  // make_example says what is missing
      text += tokenizer.token_bytes(*eos);
    }
    if (!edges.empty() && edges.back().second == piece.is_supervised) edges.pop_back();
    edges.emplace_back(text.size(), piece.is_supervised);
  }
  Example example;
  example.tokens = tokenizer.encode(text);
  const std::optional<TokenId> bos = tokenizer.bos_id();
  const bool adds_bos = tokenizer.adds_bos() && bos && (example.tokens.empty() || example.tokens.front() != *bos);
  if (adds_bos) example.tokens.insert(example.tokens.begin(), *bos);
  example.loss_mask.reserve(example.tokens.size());
  for (const auto& [end, is_supervised] : edges) {
    const std::size_t num_tokens = end == text.size()
                                       ? example.tokens.size()
                                       : tokenizer.encode(std::string_view(text).substr(0, end)).size() + adds_bos;
    example.loss_mask.resize(std::min(num_tokens, example.tokens.size()), is_supervised ? 1 : 0);
  }
  return example;
}

Example document_part(const Example& document, std::int64_t& next_token, std::int64_t max_seq_len) {
  if (max_seq_len < 2) throw InternalError("document_part: a part needs a token and one to predict it from");
  const auto size = static_cast<std::int64_t>(document.tokens.size());
  if (next_token < 0 || (next_token > 0 && next_token >= size)) {
    throw InputError(str("token ", next_token, " is not in the text, which has ", size,
                         "; did the files change since the checkpoint?"));
  }
  const std::int64_t first = std::max<std::int64_t>(next_token - 1, 0), end = std::min(first + max_seq_len, size);
  Example part;
  part.tokens.assign(document.tokens.begin() + first, document.tokens.begin() + end);
  part.loss_mask.assign(document.loss_mask.begin() + first, document.loss_mask.begin() + end);
  part.line = document.line;
  if (next_token > 0) part.loss_mask.front() = 0;
  next_token = end;
  return part;
}

namespace {

Example tokenized(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, Tokenization tokenization,
                  std::int64_t limit) {
  if (tokenization == Tokenization::kSeparate) return make_example(tokenizer, pieces, limit);
  std::optional<Example> joined = make_joined_example(tokenizer, pieces);
  if (!joined) return make_example(tokenizer, pieces, limit);
  joined->truncated = static_cast<std::int64_t>(joined->tokens.size()) > limit;
  if (joined->truncated) {
    joined->tokens.resize(static_cast<std::size_t>(limit));
    joined->loss_mask.resize(static_cast<std::size_t>(limit));
  }
  return std::move(*joined);
}

// Takes tokens out of what comes before the first answer, but not BOS.
void cut_prompt(const Tokenizer& tokenizer, Example& example, std::int64_t excess) {
  const auto answer =
      std::find_if(example.loss_mask.begin(), example.loss_mask.end(), [](auto mask) { return mask != 0; });
  const std::ptrdiff_t first = tokenizer.bos_id() && example.tokens.front() == *tokenizer.bos_id() ? 1 : 0;
  const std::ptrdiff_t room = std::max<std::ptrdiff_t>(answer - example.loss_mask.begin() - first, 0);
  const std::ptrdiff_t count = std::min<std::ptrdiff_t>(room, excess);
  example.tokens.erase(example.tokens.begin() + first, example.tokens.begin() + first + count);
  example.loss_mask.erase(example.loss_mask.begin() + first, example.loss_mask.begin() + first + count);
}

}  // namespace

std::optional<StreamExample> make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces,
                                          const LengthRule& rule) {
  const bool needs_all = rule.long_samples != LongSamples::kTruncate;
  const std::int64_t limit = needs_all ? std::numeric_limits<std::int64_t>::max() : rule.max_seq_len;
  StreamExample example{tokenized(tokenizer, pieces, rule.tokenization, limit)};
  const auto size = static_cast<std::int64_t>(example.tokens.size());
  if (needs_all && size > rule.max_seq_len) {
    if (rule.long_samples == LongSamples::kDrop) return std::nullopt;
    if (rule.long_samples == LongSamples::kError) {
      throw InputError(str("the sample has ", size, " tokens, max_seq_len is ", rule.max_seq_len,
                           "; raise it, or set data.long_samples to truncate, truncate_prompt or drop"));
    }
    cut_prompt(tokenizer, example, size - rule.max_seq_len);
    if (static_cast<std::int64_t>(example.tokens.size()) > rule.max_seq_len) {
      example.tokens.resize(static_cast<std::size_t>(rule.max_seq_len));
      example.loss_mask.resize(static_cast<std::size_t>(rule.max_seq_len));
      example.truncated = true;
    }
    example.prompt_cut = true;
  }
  const std::optional<TokenId> eos = tokenizer.eos_id();
  if (rule.ends_cut_with_eos && example.truncated && eos && example.loss_mask.back() != 0) example.tokens.back() = *eos;
  return example;
}

}  // namespace dagmoe
