// The published chat templates that are known; see recognize_jinja in prompt_template_jinja.h.
#include <algorithm>
#include <array>

#include "base/text.h"
#include "data/prompt_template_jinja.h"

namespace dagmoe {

namespace {

struct KnownHash {
  std::string_view sha256;  ///< of canonical_jinja(text)
  PromptTemplate form;
  bool knows_system = true;
};

constexpr std::array kWhole = {
    KnownHash{"ad6ed2a4e1d173722c1b14de4863e5a99245f395c6590d0ebd692444ee7fa3db", PromptTemplate::kDeepSeek},
    KnownHash{"65abbf40faed497d5e4e7db9e11881fbb1cf6b2b81f27aab5ed9cedaac306cb9", PromptTemplate::kLlama2},
    KnownHash{"2749e18e8ebc1ab28ec3b027fcb2f6faee3182858565e506a10eb6b70f0aaf1c", PromptTemplate::kLlama3},
    KnownHash{"a2944b580ec9537d6ff3dd9f8d6cc9fd553efcf39a91082efb040d69408611af", PromptTemplate::kMistral},
    KnownHash{"0e4711d70f13e8febb32d4d70e094b6ad30583bda283164c415d191e1dded417", PromptTemplate::kMistralNemo},
    KnownHash{"ee04ad87367df89563e775615c3a2a30df564ac2e0114e75e9ac9c2e8907de93", PromptTemplate::kMistralPlain},
    KnownHash{"5096af4264f0998f14ef7df11002cf45c3f7f4e9ff11fd1bbd25e5d6ef78bd58", PromptTemplate::kMistralV01},
    KnownHash{"1b45a608b130a8dab84dc986fe1067a814fea211723e78616543748c84e8451d", PromptTemplate::kMistralV3},
    KnownHash{"4f6199aa01daa90e766fd0fa6a32f5b05116ee9c784abfd4e8438ef7275d1d39", PromptTemplate::kQwen25},
    KnownHash{"9d10256fd7b6f79248118b4c2f4ea2dcb9e491c1732355229a2e9220d8324a3f", PromptTemplate::kQwen3},
    KnownHash{"b02e45dfce958a32c972804c16cefcc5ccfff9b46c6c56f8bed5d9900a3ed9cb", PromptTemplate::kLlama3},
};
/// Without their first tag, which prints bos_token, eos_token or is not there.
constexpr std::array kOlmoBodies = {
    KnownHash{"66f2bc76844ff7e9042d120accd488f013530e785c36095c74b0103909659ed3", PromptTemplate::kOlmo},
    KnownHash{"ccce58adbe40cf4fbc8d0024496143f0d62d965aa667683d26bf5d1040dc9b92", PromptTemplate::kOlmo2},
    KnownHash{"a2e65cc5ec229a6d41c5ca05a0f965ed89ec6871fc0e0cbda77c71a3cabe80c9", PromptTemplate::kOlmo,
              /*knows_system=*/false},
    KnownHash{"c5111cf0eb5adf6530fea112acec2629af22c7a882748e93116cc5762fd74439", PromptTemplate::kOlmo},
};

std::optional<KnownHash> find_hash(std::string_view canonical, const auto& known) {
  const std::string hash = sha256_hex(canonical);
  const auto found =
      std::find_if(known.begin(), known.end(), [&](const KnownHash& entry) { return entry.sha256 == hash; });
  return found == known.end() ? std::nullopt : std::optional(*found);
}

bool skip(std::string_view& text, std::string_view part) {
  const bool found = text.starts_with(part);
  if (found) text.remove_prefix(part.size());
  return found;
}

// ChatML in parts: what may stand between the first two is the default system turn.
constexpr std::string_view kForEachMessage = "{%for message in messages%}";
constexpr std::string_view kUnlessSystemFirst = "{%if loop.first and messages[0].role!='system'%}<|im_start|>system\n";
constexpr std::string_view kEndOfDefault = "<|im_end|>\n{%endif%}";
constexpr std::string_view kOneMessage =
    "<|im_start|>{{message.role}}\n{{message.content}}<|im_end|>\n{%endfor%}"
    "{%if add_generation_prompt%}<|im_start|>assistant\n{%endif%}";

std::optional<KnownTemplate> recognize_chatml(std::string_view rest) {
  KnownTemplate known{.form = PromptTemplate::kChatMl};
  if (!skip(rest, kForEachMessage)) return std::nullopt;
  if (skip(rest, kUnlessSystemFirst)) {
    const std::size_t end = rest.find(kEndOfDefault);
    if (end == std::string_view::npos) return std::nullopt;
    known.default_system = std::string(rest.substr(0, end));
    for (const char* part : {"{{", "{%", "<|im_"}) {
      if (known.default_system.find(part) != std::string::npos) return std::nullopt;
    }
    rest.remove_prefix(end + kEndOfDefault.size());
  }
  if (rest != kOneMessage) return std::nullopt;
  return known;
}

std::optional<KnownTemplate> recognize_olmo(std::string_view rest) {
  using Start = KnownTemplate::Start;
  const Start start = skip(rest, "{{bos_token}}")   ? Start::kBos
                      : skip(rest, "{{eos_token}}") ? Start::kEos
                                                    : Start::kNothing;
  const auto body = find_hash(rest, kOlmoBodies);
  if (!body) return std::nullopt;
  return KnownTemplate{.form = body->form, .start = start, .knows_system = body->knows_system};
}

}  // namespace

std::optional<KnownTemplate> recognize_jinja(std::string_view jinja) {
  const std::string canonical = canonical_jinja(jinja);
  if (auto chatml = recognize_chatml(canonical)) return chatml;
  if (auto olmo = recognize_olmo(canonical)) return olmo;
  if (const auto whole = find_hash(canonical, kWhole)) return KnownTemplate{.form = whole->form};
  return std::nullopt;
}

}  // namespace dagmoe
