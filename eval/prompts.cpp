#include "eval/prompts.h"

#include "base/error.h"
#include "eval/python_text.h"

namespace dagmoe {
namespace {

// The delimiter stands between two texts unless one of them brings white space of its own.
std::string joined(const std::string& first, const std::string& second, const std::string& delimiter) {
  if (first.empty() || second.empty()) return first + second;
  const bool has_space = trailing_space_bytes(first) > 0 || python_lstrip(second).size() < second.size();
  return first + (has_space ? "" : delimiter) + second;
}

}  // namespace

const std::string& example_answer(const Question& example) {
  if (example.choices.empty()) return example.target;
  if (!example.continuation.empty()) return example.continuation;
  return example.choices[static_cast<std::size_t>(example.gold)];
}

PromptWriter::PromptWriter(const TaskConfig& task, const EvalOptions& options, const std::string& description)
    : system_(joined(options.system_instruction, description, task.fewshot_delimiter)),
      target_delimiter_(task.target_delimiter),
      fewshot_delimiter_(task.fewshot_delimiter),
      choice_delimiter_(options.chat_format ? "" : task.target_delimiter),
      chat_(options.chat_format),
      as_multiturn_(options.fewshot_as_multiturn) {}

std::string PromptWriter::write(const std::vector<const Question*>& examples, std::string_view text) const {
  if (chat_ && as_multiturn_) {
    std::vector<Message> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    for (const Question* example : examples) {
      messages.push_back({"user", example->text});
      messages.push_back({"assistant", example_answer(*example)});
    }
    messages.push_back({"user", std::string(text)});
    return chat_prompt(messages);
  }
  std::string user;
  for (const Question* example : examples)
    user += example->text + target_delimiter_ + example_answer(*example) + fewshot_delimiter_;
  user += text;
  if (!chat_) return system_ + user;
  std::vector<Message> messages;
  if (!system_.empty()) messages.push_back({"system", system_});
  messages.push_back({"user", user});
  return chat_prompt(messages);
}

std::string PromptWriter::chat_prompt(const std::vector<Message>& messages) const {
  const auto rendered = [&](const std::vector<Message>& turns) {
    std::string prompt;
    for (const PromptPiece& piece : render_chat(*chat_, turns, /*add_generation_prompt=*/true)) prompt += piece.text;
    return prompt;
  };
  if (messages.front().role != "system") return rendered(messages);
  try {
    return rendered(messages);
  } catch (const InputError&) {
    // As the harness does: a template without a place for the system turn gets the conversation without it.
    dropped_system_ = true;
    return rendered({messages.begin() + 1, messages.end()});
  }
}

}  // namespace dagmoe
