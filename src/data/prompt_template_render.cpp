// The renderers of the named prompt forms; see render_chat in prompt_template.h.
#include "base/error.h"
#include "base/text.h"
#include "data/prompt_template.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

using Messages = std::vector<Message>;

/// Collects pieces; empty ones are left out.
class PieceList {
 public:
  /// Text of the template. Supervised: the end token of an answer.
  void fixed(std::string text, bool is_supervised = false) {
    if (!text.empty())
      pieces_.push_back({.text = std::move(text), .is_template = true, .is_supervised = is_supervised});
  }
  /// A user's text, with the template's white space around it.
  void data(std::string text, bool is_supervised = false) {
    if (!text.empty()) pieces_.push_back({.text = std::move(text), .is_supervised = is_supervised});
  }
  std::vector<PromptPiece> take() { return std::move(pieces_); }

 private:
  std::vector<PromptPiece> pieces_;
};

bool has_system(const Messages& messages) { return messages.front().role == "system"; }

[[noreturn]] void refuse_system(const ChatFormat& format) {
  throw InputError(str("chat template '", name_of(format.form),
                       "' has no system turn; put its text into the first user turn, or name another template"));
}

/// Turns after an optional system turn: user, assistant, user, ...
void check_alternation(const ChatFormat& format, const Messages& messages) {
  const std::size_t first = has_system(messages) ? 1 : 0;
  for (std::size_t i = first; i < messages.size(); ++i) {
    const std::string_view expected = (i - first) % 2 == 0 ? "user" : "assistant";
    if (messages[i].role == expected) continue;
    throw InputError(str("chat template '", name_of(format.form), "': message ", i + 1, " is of '", messages[i].role,
                         "', expected '", expected, "': after an optional system turn user and assistant alternate"));
  }
}

void append_chatml_turn(PieceList& pieces, std::string_view role, const std::string& content, bool is_learnt = true) {
  const bool is_answer = role == "assistant";
  pieces.fixed(str("<|im_start|>", role, "\n"));
  pieces.data(content, is_answer && is_learnt);
  pieces.fixed(is_answer ? "<|im_end|>" : "<|im_end|>\n", is_answer && is_learnt);
  if (is_answer) pieces.fixed("\n");
}

std::vector<PromptPiece> render_chatml(const ChatFormat& format, const Messages& messages, bool add_generation_prompt) {
  PieceList pieces;
  // The default is part of the template, but plain text all the same.
  if (!has_system(messages) && !format.default_system.empty())
    append_chatml_turn(pieces, "system", format.default_system);
  for (const Message& message : messages) append_chatml_turn(pieces, message.role, message.content, message.is_learnt);
  if (add_generation_prompt) pieces.fixed("<|im_start|>assistant\n");
  return pieces.take();
}

/// Without `c` at the front, at the end.
std::string_view strip_left(std::string_view text, char c) {
  return text.substr(std::min(text.find_first_not_of(c), text.size()));
}
std::string_view strip_right(std::string_view text, char c) { return text.substr(0, text.find_last_not_of(c) + 1); }

/// An answer of Qwen3 as thoughts and what is said; without "</think>" all of it is said.
struct ThoughtfulAnswer {
  std::string thoughts, content;
};
ThoughtfulAnswer split_thoughts(std::string_view text) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  const std::size_t close = text.find(kClose);
  if (close == std::string_view::npos) return {.thoughts = {}, .content = std::string(text)};
  const std::string_view content = text.substr(text.rfind(kClose) + kClose.size());
  std::string_view thoughts = strip_right(text.substr(0, close), '\n');
  if (const std::size_t open = thoughts.rfind(kOpen); open != std::string_view::npos)
    thoughts.remove_prefix(open + kOpen.size());
  return {.thoughts = std::string(strip_left(thoughts, '\n')), .content = std::string(strip_left(content, '\n'))};
}

std::vector<PromptPiece> render_qwen3(const Messages& messages, bool add_generation_prompt) {
  std::size_t last_question = messages.size() - 1;
  for (std::size_t i = messages.size(); i-- > 0;) {
    const Message& message = messages[i];
    const bool is_tool_text =
        message.content.starts_with("<tool_response>") && message.content.ends_with("</tool_response>");
    if (message.role != "user" || is_tool_text) continue;
    last_question = i;
    break;
  }
  PieceList pieces;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (message.role != "assistant") {
      append_chatml_turn(pieces, message.role, message.content);
      continue;
    }
    const ThoughtfulAnswer answer = split_thoughts(message.content);
    pieces.fixed("<|im_start|>assistant\n");
    if (i > last_question && (i + 1 == messages.size() || !answer.thoughts.empty())) {
      pieces.fixed("<think>\n", message.is_learnt);
      pieces.data(std::string(strip_left(strip_right(answer.thoughts, '\n'), '\n')), message.is_learnt);
      pieces.fixed("\n</think>\n\n", message.is_learnt);
      pieces.data(std::string(strip_left(answer.content, '\n')), message.is_learnt);
    } else {
      pieces.data(answer.content, message.is_learnt);
    }
    pieces.fixed("<|im_end|>", message.is_learnt);
    pieces.fixed("\n");
  }
  if (add_generation_prompt) pieces.fixed("<|im_start|>assistant\n");
  return pieces.take();
}

std::vector<PromptPiece> render_llama2(const ChatFormat& format, const Messages& messages) {
  check_alternation(format, messages);
  PieceList pieces;
  const std::size_t first = has_system(messages) ? 1 : 0;
  for (std::size_t i = first; i < messages.size(); ++i) {
    std::string content = messages[i].content;
    if (i == 1 && first == 1) content = str("<<SYS>>\n", messages[0].content, "\n<</SYS>>\n\n", content);
    content = str(" ", strip_white_space(content));
    if (messages[i].role == "user") {
      // The space leads the text, as it belongs to the token of the first word.
      pieces.fixed(format.bos + "[INST]");
      pieces.data(std::move(content));
      pieces.fixed(" [/INST]");
    } else {
      pieces.data(content + " ", messages[i].is_learnt);
      pieces.fixed(format.eos, messages[i].is_learnt);
    }
  }
  return pieces.take();
}

/// Where Mistral's templates differ.
struct MistralStyle {
  std::string_view open, lead, close, answer_lead, after_eos;
  bool knows_system = true, system_at_end = false, trims_answer = false;
};
MistralStyle mistral_style(PromptTemplate form) {
  switch (form) {
    case PromptTemplate::kMistralPlain:
      return {"[INST]", " ", " [/INST]", "", "", /*knows_system=*/false};
    case PromptTemplate::kMistralV01:
      return {"[INST]", " ", " [/INST]", "", " ", /*knows_system=*/false};
    case PromptTemplate::kMistralV3:
      return {"[INST]", " ", "[/INST]", " ", "", true, /*system_at_end=*/true, /*trims_answer=*/true};
    case PromptTemplate::kMistralNemo:
      return {"[INST]", "", "[/INST]", "", "", true, /*system_at_end=*/true};
    default:
      return {" [INST]", " ", " [/INST]", " ", ""};
  }
}

std::vector<PromptPiece> render_mistral(const ChatFormat& format, const Messages& messages) {
  const MistralStyle style = mistral_style(format.form);
  const std::size_t first = has_system(messages) ? 1 : 0;
  if (first == 1 && !style.knows_system) refuse_system(format);
  check_alternation(format, messages);
  PieceList pieces;
  std::string start = format.bos;  // what the next piece of the template begins with
  const auto fixed = [&](std::string_view text) { pieces.fixed(start.append(text)), start.clear(); };
  for (std::size_t i = first; i < messages.size(); ++i) {
    if (messages[i].role == "user") {
      const bool with_system = first == 1 && (style.system_at_end ? i + 1 == messages.size() : i == 1);
      const std::string system = with_system ? messages[0].content + "\n\n" : "";
      fixed(style.open);
      pieces.data(str(style.lead, system, messages[i].content));
      fixed(style.close);
    } else {
      const std::string& content = messages[i].content;
      pieces.data(str(style.answer_lead, style.trims_answer ? strip_white_space(content) : content),
                  messages[i].is_learnt);
      pieces.fixed(format.eos, messages[i].is_learnt);
      start = style.after_eos;
    }
  }
  fixed("");
  return pieces.take();
}

std::vector<PromptPiece> render_llama3(const ChatFormat& format, const Messages& messages, bool add_generation_prompt) {
  PieceList pieces;
  const auto header = [](std::string_view role) { return str("<|start_header_id|>", role, "<|end_header_id|>\n\n"); };
  for (const Message& message : messages) {
    const bool is_answer = message.role == "assistant";
    pieces.fixed((&message == &messages.front() ? format.bos : "") + header(message.role));
    pieces.data(std::string(strip_white_space(message.content)), is_answer && message.is_learnt);
    pieces.fixed("<|eot_id|>", is_answer && message.is_learnt);
  }
  if (add_generation_prompt) pieces.fixed(header("assistant"));
  return pieces.take();
}

std::vector<PromptPiece> render_deepseek(const ChatFormat& format, const Messages& messages,
                                         bool add_generation_prompt) {
  PieceList pieces;
  pieces.fixed(format.bos);
  for (const Message& message : messages) {
    if (message.role == "assistant") {
      pieces.fixed("Assistant:");
      pieces.data(" " + message.content, message.is_learnt);
      pieces.fixed(format.eos, message.is_learnt);
      continue;
    }
    if (message.role == "user") pieces.fixed("User:");
    pieces.data((message.role == "user" ? " " : "") + message.content);
    pieces.fixed("\n\n");
  }
  if (add_generation_prompt) pieces.fixed("Assistant:");
  return pieces.take();
}

std::vector<PromptPiece> render_olmo(const ChatFormat& format, const Messages& messages, bool add_generation_prompt) {
  PieceList pieces;
  pieces.fixed(format.bos);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    const bool is_answer = message.role == "assistant", is_last = i + 1 == messages.size();
    if (message.role == "system" && !format.knows_system) refuse_system(format);
    pieces.fixed(str("<|", message.role, "|>\n"));
    pieces.data(message.content, is_answer && message.is_learnt);
    if (is_answer) pieces.fixed(format.eos, message.is_learnt);
    if (!is_answer || !is_last || format.form == PromptTemplate::kOlmo) pieces.fixed("\n");
  }
  if (add_generation_prompt) pieces.fixed("<|assistant|>\n");
  return pieces.take();
}

/// The one question and the answer, if there is one, of a form that has room for no more.
struct Exchange {
  std::string system, question;
  std::optional<std::string> answer;
};
Exchange single_exchange(const ChatFormat& format, const Messages& messages, bool knows_system) {
  if (has_system(messages) && !knows_system) refuse_system(format);
  check_alternation(format, messages);
  const std::size_t first = has_system(messages) ? 1 : 0;
  if (messages.size() > first + 2 || messages.size() == first) {
    throw InputError(str("chat template '", name_of(format.form), "' has room for one question and one answer, found ",
                         messages.size(), " messages; name another template, such as chatml"));
  }
  return {.system = first == 1 ? messages[0].content : "",
          .question = messages[first].content,
          .answer = messages.size() > first + 1 ? std::optional(messages[first + 1].content) : std::nullopt};
}

/// A prompt of one piece, as generation encodes it, and the answer.
std::vector<PromptPiece> prompt_and_answer(std::string prompt, std::optional<std::string> answer) {
  std::vector<PromptPiece> pieces = {{.text = std::move(prompt)}};
  if (answer) pieces.push_back({.text = std::move(*answer), .is_supervised = true, .ends_turn = true});
  return pieces;
}

std::vector<PromptPiece> render_alpaca(const ChatFormat& format, const Messages& messages) {
  Exchange exchange = single_exchange(format, messages, /*knows_system=*/false);
  return prompt_and_answer(alpaca_prompt(exchange.question, "", format.form), std::move(exchange.answer));
}

std::vector<PromptPiece> render_orca(const ChatFormat& format, const Messages& messages) {
  Exchange exchange = single_exchange(format, messages, /*knows_system=*/true);
  const std::string system = exchange.system.empty() ? "" : str("### System:\n", exchange.system, "\n\n");
  return prompt_and_answer(str(system, "### User:\n", exchange.question, "\n\n### Response:\n"),
                           std::move(exchange.answer));
}

std::vector<PromptPiece> render_plain(const ChatFormat& format, const Messages& messages) {
  Exchange exchange = single_exchange(format, messages, /*knows_system=*/false);
  return prompt_and_answer(std::move(exchange.question), std::move(exchange.answer));
}

std::vector<PromptPiece> render_llama_factory(const ChatFormat& format, const Messages& messages) {
  check_alternation(format, messages);
  const std::size_t first = has_system(messages) ? 1 : 0;
  std::vector<PromptPiece> pieces = {{.text = first == 1 ? messages[0].content
                                                         : "Below is an instruction that describes a task. Write a "
                                                           "response that appropriately completes the request.\n\n"}};
  for (std::size_t i = first; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (message.role == "user") {
      pieces.push_back({.text = str("### Instruction:\n", message.content, "\n\n### Response:\n")});
    } else {
      pieces.push_back({.text = message.content, .is_supervised = message.is_learnt, .ends_turn = true});
      pieces.push_back({.text = "\n\n", .is_supervised = message.is_learnt});
    }
  }
  return pieces;
}

std::vector<PromptPiece> render_esft(const ChatFormat& format, const Messages& messages) {
  if (has_system(messages)) refuse_system(format);
  check_alternation(format, messages);
  std::vector<PromptPiece> pieces;
  for (const Message& message : messages) {
    if (message.role == "user") {
      pieces.push_back({.text = str("User: ", strip_white_space(message.content), "\n\nAssistant:")});
    } else {
      pieces.push_back({.text = str(" ", strip_white_space(message.content)),
                        .is_supervised = message.is_learnt,
                        .ends_turn = true});
    }
  }
  return pieces;
}

}  // namespace

std::vector<PromptPiece> render_chat(const ChatFormat& format, const std::vector<Message>& messages,
                                     bool add_generation_prompt) {
  if (messages.empty()) throw InputError("chat: there are no messages; expected at least one");
  switch (format.form) {
    case PromptTemplate::kAlpaca:
    case PromptTemplate::kAlpacaLora:
    case PromptTemplate::kMammoth:
      return render_alpaca(format, messages);
    case PromptTemplate::kOrca:
      return render_orca(format, messages);
    case PromptTemplate::kPlain:
      return render_plain(format, messages);
    case PromptTemplate::kLlamaFactoryAlpaca:
      return render_llama_factory(format, messages);
    case PromptTemplate::kEsft:
      return render_esft(format, messages);
    case PromptTemplate::kChatMl:
    case PromptTemplate::kQwen:
    case PromptTemplate::kQwen25:
      return render_chatml(format, messages, add_generation_prompt);
    case PromptTemplate::kQwen3:
      return render_qwen3(messages, add_generation_prompt);
    case PromptTemplate::kDeepSeek:
      return render_deepseek(format, messages, add_generation_prompt);
    case PromptTemplate::kLlama2:
      return render_llama2(format, messages);
    case PromptTemplate::kLlama3:
      return render_llama3(format, messages, add_generation_prompt);
    case PromptTemplate::kMistral:
    case PromptTemplate::kMistralNemo:
    case PromptTemplate::kMistralPlain:
    case PromptTemplate::kMistralV01:
    case PromptTemplate::kMistralV3:
      return render_mistral(format, messages);
    case PromptTemplate::kOlmo:
    case PromptTemplate::kOlmo2:
      return render_olmo(format, messages, add_generation_prompt);
  }
  throw InternalError("render_chat: unknown prompt template");
}

}  // namespace dagmoe
