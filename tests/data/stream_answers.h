#pragma once

#include <string>
#include <vector>

#include "data/example_stream.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/text_file.h"

namespace dagmoe {

/// The records of a test's file, prompts and completions.
inline SourceConfig source(const TextFile& file) {
  return {.path = file.path(), .format = RecordFormat::kPromptCompletion};
}

/// The answer of an example, which names it.
inline std::string answer_of(const Example& example) {
  std::string text;
  for (std::size_t i = 0; i < example.tokens.size(); ++i) {
    if (example.loss_mask[i] != 0 && example.tokens[i] < kByteBos) text.push_back(static_cast<char>(example.tokens[i]));
  }
  return text;
}

/// The answers that are left of an epoch.
inline std::vector<std::string> epoch_of(ExampleStream& stream) {
  std::vector<std::string> answers;
  while (const auto example = stream.next()) answers.push_back(answer_of(*example));
  return answers;
}

}  // namespace dagmoe
