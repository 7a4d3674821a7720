#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// One turn of a conversation; role is system, user or assistant.
struct Message {
  std::string role, content;
};

/// A sample before tokenization. Text that the template wrote may hold control tokens; text of the user's data never is
/// parsed for them, which is why a prompt is a list of pieces.
struct PromptPiece {
  std::string text;
  bool is_template = false;    ///< written by the template: control tokens in it are real
  bool is_supervised = false;  ///< the model is to learn these tokens
  bool ends_turn = false;      ///< the EOS token follows (supervised when the piece is)
};

/// Named prompt forms, compiled in byte for byte as their authors publish them (method.md 7.2): "alpaca",
/// "alpaca_lora", "chatml". There is no free template string.
enum class PromptTemplate { kAlpaca, kAlpacaLora, kChatMl };
/// Throws nothing; nullopt for an unknown name. `prompt_template_names` lists what is known, for hints.
std::optional<PromptTemplate> prompt_template_named(std::string_view name);
const std::vector<std::string>& prompt_template_names();

/// The pieces of a conversation. With `add_generation_prompt` the last turn is the user's and the text ends where the
/// assistant begins. For alpaca forms a user turn is instruction + optional input (see Record). chatml prepends
/// `default_system` as a system turn when the first message is none and `default_system` is not empty.
std::vector<PromptPiece> render_chatml(const std::vector<Message>& messages, std::string_view default_system,
                                       bool add_generation_prompt);
/// Stanford's two forms; `input` "" selects the one without. Ends in "### Response:" (alpaca) or one more newline
/// (alpaca_lora).
std::string alpaca_prompt(std::string_view instruction, std::string_view input,
                          PromptTemplate form = PromptTemplate::kAlpaca);

/// What a checkpoint says about chat: its Jinja template, recognized by comparing texts; never interpreted.
struct ChatFormat {
  PromptTemplate form = PromptTemplate::kChatMl;
  std::string default_system;  ///< the system turn the template adds by itself; "" for none
};
/// From chat_template.jinja, else tokenizer_config.json. nullopt when the folder has no template; throws InputError for
/// one that is not known (it names the ones that are).
std::optional<ChatFormat> chat_format_of(const std::filesystem::path& model_folder);

}  // namespace dagmoe
