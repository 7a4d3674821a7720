#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "eval/eval_options.h"
#include "eval/questions.h"
#include "eval/task.h"

namespace dagmoe {

/// Puts system instruction, description, examples and question together as lm-evaluation-harness does: as plain text,
/// or as a conversation under a chat template.
class PromptWriter {
 public:
  /// Copies what it needs. `description` is the task's, with its fields filled in.
  PromptWriter(const TaskConfig& task, const EvalOptions& options, const std::string& description);
  /// The prompt that ends in `text`. Throws InputError with the reason only where a chat template has no place for
  /// the turns.
  std::string write(const std::vector<const Question*>& examples, std::string_view text) const;
  /// Between a prompt and a choice: the task's, or nothing behind a chat template.
  const std::string& choice_delimiter() const { return choice_delimiter_; }
  /// The chat template refused a system turn at least once, and prompts were written without.
  bool dropped_system() const { return dropped_system_; }

 private:
  std::string chat_prompt(const std::vector<Message>& messages) const;

  std::string system_, target_delimiter_, fewshot_delimiter_, choice_delimiter_;
  std::optional<ChatFormat> chat_;
  bool as_multiturn_ = false;
  mutable bool dropped_system_ = false;
};

/// The answer of an example as prompts print it.
const std::string& example_answer(const Question& example);

}  // namespace dagmoe
