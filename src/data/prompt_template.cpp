#include "data/prompt_template.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/prompt_template_jinja.h"
#include "data/tokenizer_config.h"

namespace dagmoe {

namespace {

/// What is fixed for a form: its name, its default system turn and the texts of BOS and EOS.
struct FormInfo {
  PromptTemplate form;
  std::string_view name, default_system, bos, eos;
};
constexpr std::string_view kDeepSeekBos = "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
                           kDeepSeekEos = "<\uFF5Cend\u2581of\u2581sentence\uFF5C>";
constexpr std::array kForms = {
    FormInfo{PromptTemplate::kAlpaca, "alpaca", "", "", ""},
    FormInfo{PromptTemplate::kAlpacaLora, "alpaca_lora", "", "", ""},
    FormInfo{PromptTemplate::kChatMl, "chatml", "", "", ""},
    FormInfo{PromptTemplate::kDeepSeek, "deepseek", "", kDeepSeekBos, kDeepSeekEos},
    FormInfo{PromptTemplate::kLlama2, "llama-2", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kLlama3, "llama-3", "", "<|begin_of_text|>", ""},
    FormInfo{PromptTemplate::kMistral, "mistral", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kMistralNemo, "mistral-nemo", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kMistralPlain, "mistral-plain", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kMistralV01, "mistral-v0.1", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kMistralV3, "mistral-v3", "", "<s>", "</s>"},
    FormInfo{PromptTemplate::kOlmo, "olmo", "", "<|endoftext|>", "<|endoftext|>"},
    FormInfo{PromptTemplate::kOlmo2, "olmo-2", "", "<|endoftext|>", "<|endoftext|>"},
    FormInfo{PromptTemplate::kQwen, "qwen", "You are a helpful assistant.", "", ""},
    FormInfo{PromptTemplate::kQwen25, "qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
             "", ""},
    FormInfo{PromptTemplate::kEsft, "esft", "", "", ""},
    FormInfo{PromptTemplate::kLlamaFactoryAlpaca, "llamafactory_alpaca", "", "", ""},
    FormInfo{PromptTemplate::kMammoth, "mammoth", "", "", ""},
    FormInfo{PromptTemplate::kOrca, "orca", "", "", ""},
    FormInfo{PromptTemplate::kPlain, "plain", "", "", ""},
    FormInfo{PromptTemplate::kQwen3, "qwen3", "", "", ""},
};

const FormInfo& info_of(PromptTemplate form) {
  const auto found = std::find_if(kForms.begin(), kForms.end(), [form](const auto& info) { return info.form == form; });
  if (found == kForms.end()) throw InternalError("info_of: unknown prompt template");
  return *found;
}

/// The family's texts with those of the checkpoint in their place.
ChatFormat with_tokens(ChatFormat format, const TokenizerConfig& config) {
  if (!format.bos.empty() && config.bos) format.bos = *config.bos;
  if (!format.eos.empty() && config.eos) format.eos = *config.eos;
  return format;
}

struct TemplateText {
  std::filesystem::path path;
  std::string jinja;  ///< "" when the folder has none
};

TemplateText template_text(const std::filesystem::path& folder, const TokenizerConfig& config) {
  if (const auto path = folder / "chat_template.jinja"; std::filesystem::exists(path)) {
    return {path, std::string(MappedFile::open(path)->text())};
  }
  return {folder / "tokenizer_config.json", config.chat_template};
}

std::optional<ChatFormat> recognize(std::string_view jinja, const TokenizerConfig& config) {
  const std::optional<KnownTemplate> known = recognize_jinja(jinja);
  if (!known) return std::nullopt;
  ChatFormat format = with_tokens(chat_format(known->form), config);
  if (known->form == PromptTemplate::kChatMl) format.default_system = known->default_system;
  if (known->start == KnownTemplate::Start::kEos) format.bos = format.eos;
  if (known->start == KnownTemplate::Start::kNothing) format.bos.clear();
  format.knows_system = known->knows_system;
  return format;
}

constexpr std::string_view kWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n";
constexpr std::string_view kWithoutInput =
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n";

}  // namespace

std::optional<PromptTemplate> prompt_template_named(std::string_view name) {
  const auto found = std::find_if(kForms.begin(), kForms.end(), [name](const auto& info) { return info.name == name; });
  return found == kForms.end() ? std::nullopt : std::optional(found->form);
}

std::string_view name_of(PromptTemplate form) { return info_of(form).name; }

const std::vector<std::string>& prompt_template_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const FormInfo& info : kForms) all.emplace_back(info.name);
    return all;
  }();
  return names;
}

ChatFormat chat_format(PromptTemplate form) {
  const FormInfo& info = info_of(form);
  return {.form = form,
          .default_system = std::string(info.default_system),
          .bos = std::string(info.bos),
          .eos = std::string(info.eos)};
}

ChatFormat chat_format(PromptTemplate form, const std::filesystem::path& model_folder) {
  const TokenizerConfig config = read_tokenizer_config(model_folder);
  const std::optional<ChatFormat> own = recognize(template_text(model_folder, config).jinja, config);
  return own && own->form == form ? *own : with_tokens(chat_format(form), config);
}

std::optional<ChatFormat> chat_format_of(const std::filesystem::path& model_folder) {
  const TokenizerConfig config = read_tokenizer_config(model_folder);
  const TemplateText text = template_text(model_folder, config);
  if (text.jinja.empty()) return std::nullopt;
  std::optional<ChatFormat> format = recognize(text.jinja, config);
  if (!format) {
    throw InputError(str(text.path.string(), ": this chat template is not known; name the one to use: ",
                         join(prompt_template_names(), ", "),
                         " (template: NAME in a recipe's data, --chat-template NAME for generate)"));
  }
  return format;
}

std::string alpaca_prompt(std::string_view instruction, std::string_view input, PromptTemplate form) {
  std::string prompt = str(input.empty() ? kWithoutInput : kWithInput, "### Instruction:\n", instruction, "\n\n");
  if (!input.empty()) prompt += str("### Input:\n", input, "\n\n");
  prompt += "### Response:";
  if (form == PromptTemplate::kAlpacaLora) prompt += '\n';
  return prompt;
}

}  // namespace dagmoe
