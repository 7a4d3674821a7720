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
  bool is_learnt = true;  ///< an assistant's text; false takes it out of the loss
};

/// A sample before tokenization. Text that the template wrote may hold control tokens; text of the user's data never is
/// parsed for them, which is why a prompt is a list of pieces.
struct PromptPiece {
  std::string text;
  bool is_template = false;    ///< written by the template: control tokens in it are real
  bool is_supervised = false;  ///< the model is to learn these tokens
  bool ends_turn = false;      ///< the EOS token follows (supervised when the piece is)
};

/// Named prompt forms, compiled in byte for byte as their authors publish them (method.md 7.2). There is no free
/// template string. What a form is of, where its name does not say it:
enum class PromptTemplate {
  kAlpaca,              ///< Stanford's
  kAlpacaLora,          ///< the same with a line feed behind "### Response:"
  kChatMl,              ///< also SmolLM2-Instruct, whose default system turn is the checkpoint's
  kDeepSeek,            ///< DeepSeek-V2-Chat
  kEsft,                ///< ESFT's training form: "User: ...", blank line, "Assistant:" and EOS behind each answer
  kLlama2,              ///< Llama-2-Chat
  kLlama3,              ///< Meta-Llama-3-Instruct; 3.1 and later print dates and are not known
  kLlamaFactoryAlpaca,  ///< LLaMA-Factory's "alpaca", which is not Stanford's
  kMammoth,             ///< MAmmoTH: Stanford's form without an input, whatever the record has
  kMistral,             ///< Mistral-7B-Instruct-v0.2 and Mixtral-8x7B-Instruct as published now
  kMistralNemo,         ///< Mistral-Nemo-Instruct-2407
  kMistralPlain,        ///< as published first: without a system turn and without the space before an answer
  kMistralV01,          ///< Mistral-7B-Instruct-v0.1: the same with a space behind each EOS
  kMistralV3,           ///< Mistral-7B-Instruct-v0.3, Mistral-Large-Instruct-2407
  kOlmo,                ///< OLMo-7B-Instruct, Tulu; begins with EOS, BOS or nothing
  kOlmo2,               ///< OLMo-2-Instruct, Tulu 3
  kOrca,                ///< "### System:", "### User:", "### Response:"; a community form, no author's
  kPlain,               ///< the prompt as it stands and the answer behind it, as TRL reads prompt and completion
  kQwen,                ///< Qwen1.5, Qwen2: ChatML with "You are a helpful assistant."
  kQwen25,              ///< the same with the default system turn of Qwen2.5
  kQwen3                ///< no default; the last answer gets a block of thoughts, empty when it has none
};
/// Throws nothing; nullopt for an unknown name. `prompt_template_names` lists what is known, for hints.
std::optional<PromptTemplate> prompt_template_named(std::string_view name);
std::string_view name_of(PromptTemplate form);
const std::vector<std::string>& prompt_template_names();

/// A form with what a checkpoint fills in.
struct ChatFormat {
  PromptTemplate form = PromptTemplate::kAlpaca;
  std::string default_system = {};  ///< chatml, qwen: the system turn the template adds by itself; "" for none
  std::string bos = {}, eos = {};   ///< the texts that the template prints for its bos_token and eos_token
  bool knows_system = true;         ///< olmo: false for OLMo-7B-Instruct's text, which leaves system turns out
};
/// With the family's own texts.
ChatFormat chat_format(PromptTemplate form);
/// With those of the checkpoint: BOS and EOS of tokenizer_config.json, and all of its own chat template when that is of
/// this form. `model_folder` need not have any of them.
ChatFormat chat_format(PromptTemplate form, const std::filesystem::path& model_folder);
/// What a checkpoint says about chat: its Jinja template, recognized by comparing texts (prompt_template_jinja.h);
/// never interpreted. From chat_template.jinja, else tokenizer_config.json. nullopt when the folder has none; throws
/// InputError for one that is not known (it names the ones that are).
std::optional<ChatFormat> chat_format_of(const std::filesystem::path& model_folder);

/// The pieces of a conversation, together the bytes that transformers' apply_chat_template makes of the published
/// template (without tools). Supervised are the assistant's texts with the end token behind each. With
/// `add_generation_prompt` the text ends where the assistant begins; templates that have nothing to add there ignore
/// it. Throws InputError where the template raises (roles that do not alternate, a system turn it has no place for),
/// and where it would leave a turn out without a word. Two published texts lose something all the same, and so does
/// this: mistral-v3 and mistral-nemo print the system turn only when the last turn is the user's.
std::vector<PromptPiece> render_chat(const ChatFormat& format, const std::vector<Message>& messages,
                                     bool add_generation_prompt);
/// Stanford's two forms; `input` "" selects the one without. Ends in "### Response:" (alpaca) or one more newline
/// (alpaca_lora).
std::string alpaca_prompt(std::string_view instruction, std::string_view input,
                          PromptTemplate form = PromptTemplate::kAlpaca);

}  // namespace dagmoe
