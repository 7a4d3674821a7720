#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/model_session.h"
#include "data/example.h"
#include "eval/generation.h"
#include "eval/text_stream.h"

namespace dagmoe {
namespace {

struct GenerateFlags {
  std::string model, prompt, system, chat_template, dtype = "float32";
  std::vector<std::string> adapters, stop;
  bool chat = false, json = false;
  std::int64_t max_new_tokens = 256;
  double temperature = 0.0, top_p = 1.0;
  std::uint64_t seed = 0;
};

ChatFormat chat_format_for(const GenerateFlags& flags) {
  if (const auto named = prompt_template_named(flags.chat_template)) return chat_format(*named, flags.model);
  if (!flags.chat_template.empty()) {
    throw ConfigError(str("--chat-template: found '", flags.chat_template, "', expected one of ",
                          join(prompt_template_names(), ", "),
                          did_you_mean(flags.chat_template, prompt_template_names())));
  }
  const auto own = chat_format_of(flags.model);
  if (!own) {
    throw InputError(str(flags.model, ": has no chat template; leave --chat out, or name one with --chat-template: ",
                         join(prompt_template_names(), ", ")));
  }
  return *own;
}

std::vector<TokenId> prompt_tokens(const ModelSession& session, const GenerateFlags& flags) {
  if (!flags.chat) return session.tokenizer->encode(flags.prompt, {.add_bos = session.tokenizer->adds_bos()});
  const ChatFormat format = chat_format_for(flags);
  std::vector<Message> messages;
  if (!flags.system.empty()) messages.push_back({"system", flags.system});
  messages.push_back({"user", flags.prompt});
  // The same tokenization that training samples get, so that the model sees what it was taught.
  const auto pieces = render_chat(format, messages, /*add_generation_prompt=*/true);
  return make_example(*session.tokenizer, pieces, session.checkpoint.config().max_position_embeddings).tokens;
}

int generate_command(const GenerateFlags& flags) {
  if (!flags.system.empty() && !flags.chat) log_warning("--system has no effect without --chat");
  if (!flags.chat_template.empty() && !flags.chat) log_warning("--chat-template has no effect without --chat");
  if (flags.temperature == 0.0 && flags.top_p < 1.0) log_warning("--top-p has no effect with --temperature 0 (greedy)");
  const ModelSession session = open_model(flags.model, compute_type(flags.dtype), flags.adapters);
  const std::vector<TokenId> prompt = prompt_tokens(session, flags);
  if (prompt.empty()) throw ConfigError("--prompt: is empty and the model has no BOS token; give some text");
  GenerateRequest request;
  request.max_new_tokens = flags.max_new_tokens;
  request.temperature = flags.temperature;
  request.top_p = flags.top_p;
  request.seed = flags.seed;

  TextStream stream(*session.tokenizer, flags.stop);
  std::string text;
  const auto show = [&](const std::string& piece) {
    text += piece;
    if (!flags.json) std::cout << piece << std::flush;
  };
  const GenerationResult result =
      generate_tokens(session.model, prompt, request, end_ids_of(session.model, *session.tokenizer), [&](TokenId id) {
        show(stream.push(id));
        return !stream.stopped();
      });
  show(stream.finish());
  const auto rate = [](std::size_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  if (flags.json) {
    std::cout << Json{{"text", text},
                      {"prompt_tokens", prompt.size()},
                      {"new_tokens", result.tokens.size()},
                      {"prefill_seconds", result.prefill_seconds},
                      {"decode_seconds", result.decode_seconds}}
                     .dump()
              << std::endl;
    return 0;
  }
  std::cout << std::endl;
  log_info(str(prompt.size(), " prompt tokens at ", fixed(rate(prompt.size(), result.prefill_seconds), 0), " tok/s, ",
               result.tokens.size(), " new tokens at ", fixed(rate(result.tokens.size(), result.decode_seconds), 1),
               " tok/s"));
  return 0;
}

}  // namespace

void register_generate(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "continue a prompt, or answer it as a chat model");
  command->add_option("--adapter", flags->adapters, "adapter folder on the model; may be given more than once")
      ->take_all();
  command->add_option("--model", flags->model, "model folder")->required();
  command->add_option("--prompt", flags->prompt, "text to continue, or the user's message with --chat")->required();
  command->add_flag("--chat", flags->chat, "use the model's chat template");
  command->add_option("--chat-template", flags->chat_template, "with --chat: this named template, not the model's own");
  command->add_option("--system", flags->system, "system message, with --chat");
  command->add_option("--max-new-tokens", flags->max_new_tokens, "stop after this many")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_option("--temperature", flags->temperature, "0: always the most probable token")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-p", flags->top_p, "sample from the smallest set of tokens with this probability")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", flags->seed, "of the sampling")->capture_default_str();
  command->add_option("--stop", flags->stop, "end before this text; may be given more than once")->take_all();
  command->add_option("--dtype", flags->dtype, "compute type: float32 or bfloat16")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object instead of text");
  command->callback([flags, &run] { run = [flags] { return generate_command(*flags); }; });
}

}  // namespace dagmoe
