#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace dagmoe {

/// Turns generated tokens into text that may be shown at once: holds back the bytes of a character that is not complete
/// and text that may be the beginning of a stop string. The pieces of push() and finish() joined are text().
///
///   TextStream stream(tokenizer, {"\nUser:"});
///   generate_tokens(model, prompt, request, end_ids, [&](TokenId id) {
///     std::cout << stream.push(id) << std::flush;
///     return !stream.stopped();
///   });
///   std::cout << stream.finish();
class TextStream {
 public:
  /// Empty stop strings are ignored.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop = {});
  /// What can be shown after this token. Control tokens have no text.
  std::string push(TokenId id);
  /// A stop string has come; text ends before it and takes no more tokens.
  bool stopped() const { return stopped_; }
  /// What was held back. An incomplete character becomes U+FFFD.
  std::string finish();
  /// Everything shown so far.
  const std::string& text() const { return shown_; }

 private:
  std::string show(std::size_t num_bytes);
  const Tokenizer& tokenizer_;
  std::vector<std::string> stop_;
  std::string shown_, held_;
  bool stopped_ = false;
};

}  // namespace dagmoe
