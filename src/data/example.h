#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "data/record.h"
#include "data/tokenizer.h"

namespace dagmoe {

/// One tokenized sample: loss_mask[i] is 1 where token i is a training target; `line` is its place in the file, for
/// messages.
struct Example {
  std::vector<TokenId> tokens;
  std::vector<std::uint8_t> loss_mask;
  std::int64_t line = 0;
  bool truncated = false;
  std::int64_t num_targets()
      const;  ///< supervised tokens, without a first one: nothing comes before it to predict it from
};

/// An example as a stream hands it out.
struct StreamExample : Example {
  bool prompt_cut = false;           ///< it lost the beginning of its prompt
  std::size_t source = 0, file = 0;  ///< of the stream, and of that source
};

/// Tokenizes the pieces of a sample one by one (policy `separate`, method.md 7.3), so that training and generation see
/// the same prompt ids: template pieces with control tokens parsed, data pieces without; BOS once at the start if the
/// tokenizer adds it; EOS (the tokenizer's) where a piece ends a turn and the template has no end-of-turn text of its
/// own. A sample longer than `max_seq_len` loses its end, EOS included; `truncated` says so. Throws InputError (the
/// reason only) when a piece ends its turn and the tokenizer has no EOS token.
Example make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces, std::int64_t max_seq_len);

/// The same by policy `joined`: the text of all pieces is encoded once, and a stretch that is learnt begins and ends
/// where the tokens of the text before it do, however these are cut there. nullopt for a sample whose data spells a
/// control token, which would become one.
std::optional<Example> make_joined_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces);

/// The part of a long document that is learnt next: at most `max_seq_len` tokens, of which the first is the last one of
/// the part before (nothing predicts a part's first token, and so every token of the document is a target once; the
/// repeated one is not supervised again). `next_token`: how many tokens the parts before had learnt, 0 for the first
/// part; it is moved on, to `document.tokens.size()` with the last part. `max_seq_len` is at least 2. Throws InputError
/// (the reason only) for a token outside the document.
Example document_part(const Example& document, std::int64_t& next_token, std::int64_t max_seq_len);

/// What becomes of a sample of more than max_seq_len tokens. Documents are not concerned: they are read in parts.
enum class LongSamples {
  kTruncate,        ///< it loses its end, EOS included
  kTruncatePrompt,  ///< it loses the beginning of what comes before its first answer, behind BOS; an answer that is too
                    ///< long even so loses its end
  kDrop,            ///< it is left out
  kError            ///< InputError
};
/// How the tokens of a sample come about (method.md 7.3).
enum class Tokenization {
  kSeparate,  ///< piece by piece, so that training and generation see the same prompt ids
  kJoined     ///< all of its text at once, as the published Alpaca runs and TRL have it
};
struct LengthRule {
  Tokenization tokenization = Tokenization::kSeparate;
  std::int64_t max_seq_len = 512;
  LongSamples long_samples = LongSamples::kTruncate;
  bool ends_cut_with_eos = false;  ///< EOS takes the place of the last token of an answer that lost its end
};
/// The sample as the rule leaves it (piece by piece where make_joined_example gives nothing); nullopt when it drops it.
/// Throws InputError (the reason only) where the rule says error.
std::optional<StreamExample> make_example(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces,
                                          const LengthRule& rule);

}  // namespace dagmoe
