#include "data/prompt_template.h"

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/prompt_template_jinja.h"
#include "data/tokenizer_config.h"

namespace dagmoe {

namespace {

constexpr std::string_view kWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n";
constexpr std::string_view kWithoutInput =
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n";

// ChatML in the canonical form of prompt_template_jinja.h, in parts: what may stand between the first two is the
// default system turn.
constexpr std::string_view kForEachMessage = "{%for message in messages%}";
constexpr std::string_view kUnlessSystemFirst = "{%if loop.first and messages[0].role!='system'%}<|im_start|>system\n";
constexpr std::string_view kEndOfDefault = "<|im_end|>\n{%endif%}";
constexpr std::string_view kOneMessage =
    "<|im_start|>{{message.role}}\n{{message.content}}<|im_end|>\n{%endfor%}"
    "{%if add_generation_prompt%}<|im_start|>assistant\n{%endif%}";

/// The format of a Jinja text; nullopt for one that is not known.
std::optional<ChatFormat> recognize(std::string_view jinja) {
  const std::string canonical = canonical_jinja(jinja);
  std::string_view rest = canonical;
  const auto skip = [&rest](std::string_view part) {
    const bool found = rest.starts_with(part);
    if (found) rest.remove_prefix(part.size());
    return found;
  };
  ChatFormat format;
  if (!skip(kForEachMessage)) return std::nullopt;
  if (skip(kUnlessSystemFirst)) {
    const std::size_t end = rest.find(kEndOfDefault);
    if (end == std::string_view::npos) return std::nullopt;
    format.default_system = std::string(rest.substr(0, end));
    for (const char* part : {"{{", "{%", "<|im_"}) {
      if (format.default_system.find(part) != std::string::npos) return std::nullopt;
    }
    rest.remove_prefix(end + kEndOfDefault.size());
  }
  if (rest != kOneMessage) return std::nullopt;
  return format;
}

PromptPiece template_piece(std::string text) { return {.text = std::move(text), .is_template = true}; }

void append_turn(std::vector<PromptPiece>& pieces, std::string_view role, std::string_view content) {
  const bool is_supervised = role == "assistant";
  pieces.push_back(template_piece(str("<|im_start|>", role, "\n")));
  if (!content.empty()) pieces.push_back({.text = std::string(content), .is_supervised = is_supervised});
  if (is_supervised) {
    pieces.push_back({.text = "<|im_end|>", .is_template = true, .is_supervised = true});
    pieces.push_back(template_piece("\n"));
  } else {
    pieces.push_back(template_piece("<|im_end|>\n"));
  }
}

}  // namespace

std::optional<PromptTemplate> prompt_template_named(std::string_view name) {
  if (name == "alpaca") return PromptTemplate::kAlpaca;
  if (name == "alpaca_lora") return PromptTemplate::kAlpacaLora;
  if (name == "chatml") return PromptTemplate::kChatMl;
  return std::nullopt;
}

const std::vector<std::string>& prompt_template_names() {
  static const std::vector<std::string> names = {"alpaca", "alpaca_lora", "chatml"};
  return names;
}

std::vector<PromptPiece> render_chatml(const std::vector<Message>& messages, std::string_view default_system,
                                       bool add_generation_prompt) {
  std::vector<PromptPiece> pieces;
  const bool has_system = !messages.empty() && messages.front().role == "system";
  if (!messages.empty() && !has_system && !default_system.empty()) {
    // The default is part of the template, but plain text all the same.
    append_turn(pieces, "system", default_system);
  }
  for (const Message& message : messages) append_turn(pieces, message.role, message.content);
  if (add_generation_prompt) pieces.push_back(template_piece("<|im_start|>assistant\n"));
  return pieces;
}

std::string alpaca_prompt(std::string_view instruction, std::string_view input, PromptTemplate form) {
  std::string prompt = str(input.empty() ? kWithoutInput : kWithInput, "### Instruction:\n", instruction, "\n\n");
  if (!input.empty()) prompt += str("### Input:\n", input, "\n\n");
  prompt += "### Response:";
  if (form == PromptTemplate::kAlpacaLora) prompt += '\n';
  return prompt;
}

std::optional<ChatFormat> chat_format_of(const std::filesystem::path& model_folder) {
  auto path = model_folder / "chat_template.jinja";
  std::string jinja;
  if (std::filesystem::exists(path)) {
    jinja = MappedFile::open(path)->text();
  } else {
    path = model_folder / "tokenizer_config.json";
    jinja = read_tokenizer_config(model_folder).chat_template;
  }
  if (jinja.empty()) return std::nullopt;
  std::optional<ChatFormat> format = recognize(jinja);
  if (!format) {
    throw InputError(str(path.string(),
                         ": this chat template is not known; known: ChatML, with or without a default system "
                         "text (as SmolLM2-Instruct has); name a template in the recipe"));
  }
  return format;
}

}  // namespace dagmoe
