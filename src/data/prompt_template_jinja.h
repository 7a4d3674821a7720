#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/prompt_template.h"

namespace dagmoe {

/// One spelling for Jinja templates that print the same, so that two can be compared as texts; nothing is evaluated.
///   {{ '<|im_start|>' + message['role'] + '\n' }}   becomes   <|im_start|>{{message.role}}, line feed
/// Literals that are printed become text, spaces inside tags go, attributes are written with a dot, strings with single
/// quotes, comments disappear. White space around tags follows Hugging Face's settings (trim_blocks, lstrip_blocks) and
/// '-'.
std::string canonical_jinja(std::string_view jinja);

/// What a known template is, beside its form.
struct KnownTemplate {
  enum class Start { kForm, kBos, kEos, kNothing };
  PromptTemplate form = PromptTemplate::kChatMl;
  std::string default_system = {};  ///< chatml only
  Start start = Start::kForm;       ///< olmo: what the text prints first; kForm: as the form has it
  bool knows_system = true;         ///< olmo
};
/// Compares with the published texts, by the SHA-256 of their canonical spelling (tests/golden/chat_templates.json
/// has the texts), or by parts where a checkpoint fills something in. nullopt for one that is not known.
std::optional<KnownTemplate> recognize_jinja(std::string_view jinja);

}  // namespace dagmoe
