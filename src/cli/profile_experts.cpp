#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/model_session.h"
#include "finetune/expert_profile.h"

namespace dagmoe {
namespace {

struct ProfileFlags {
  std::string model, format = "alpaca", chat_template = "auto", score = "token", dtype = "float32", output;
  std::vector<std::string> data;
  std::optional<double> top_p;
  std::optional<std::int64_t> max_seq_len;
  std::int64_t limit = 0, max_bad_records = 0;
  std::uint64_t seed = 17;
  ProfileOptions options;
  bool shared_experts = false, non_expert_modules = false, json = false;
};

constexpr std::int64_t kMaxSeqLen = 4096;  // the paper's

template <class T>
T known_word(const std::optional<T>& value, std::string_view flag, const std::string& word,
             const std::vector<std::string>& known) {
  if (value) return *value;
  throw ConfigError(str(flag, ": found '", word, "', expected one of ", join(known, ", "), did_you_mean(word, known)));
}

ChatFormat chat_format_for(const ProfileFlags& flags) {
  if (flags.chat_template == "auto") return chat_format_of(flags.model).value_or(chat_format(PromptTemplate::kAlpaca));
  std::vector<std::string> known = prompt_template_names();
  known.emplace_back("auto");
  return chat_format(known_word(prompt_template_named(flags.chat_template), "--template", flags.chat_template, known),
                     flags.model);
}

std::vector<SourceConfig> sources_of(const ProfileFlags& flags) {
  const RecordFormat format =
      known_word(record_format_named(flags.format), "--format", flags.format, record_format_names());
  const ChatFormat chat = chat_format_for(flags);
  std::vector<SourceConfig> sources;
  for (const auto& file : flags.data) sources.push_back({file, format, chat});
  return sources;
}

ExampleStream open_stream(const ProfileFlags& flags, const ModelSession& session) {
  const std::int64_t positions = session.checkpoint.config().max_position_embeddings;
  if (flags.max_seq_len && *flags.max_seq_len > positions) {
    log_warning(str("--max-seq-len (", *flags.max_seq_len, ") is more than the ", positions,
                    " positions that the model was trained on"));
  }
  ExampleStream stream(sources_of(flags), *session.tokenizer,
                       {.max_seq_len = flags.max_seq_len.value_or(std::min(kMaxSeqLen, positions)),
                        .max_bad_records = flags.max_bad_records,
                        .limit = flags.limit,
                        .shuffle = true,
                        .seed = flags.seed});
  for (const auto& report : stream.counters().bad_record_reports) log_warning(report);
  return stream;
}

int profile_command(const ProfileFlags& flags) {
  static const std::vector<std::string> kScores{"token", "gate"};
  ExpertProfile profile{.model = flags.model, .data = flags.data};
  profile.score = known_word(esft_score_named(flags.score), "--score", flags.score, kScores);
  profile.top_p = flags.top_p.value_or(default_top_p(profile.score));
  const ModelSession session = open_model(flags.model, compute_type(flags.dtype));
  const auto& moe = session.checkpoint.config().moe;
  if (flags.shared_experts && moe && moe->shared_expert_intermediate_size == 0)
    throw ConfigError("--shared-experts: the model has no shared expert; leave it out");
  ExampleStream stream = open_stream(flags, session);
  profile.totals = profile_experts(session.model, stream, flags.options);
  profile.selection = select_experts(profile.totals, profile.score, profile.top_p);
  profile.selection.shared_experts = flags.shared_experts;
  profile.selection.non_expert_modules = flags.non_expert_modules;
  for (const auto& line : profile_warnings(profile)) log_warning(line);
  write_profile(profile, flags.output);
  if (flags.json) {
    std::cout << profile_json(profile).dump(2) << std::endl;
    return 0;
  }
  std::cout << profile_table(profile) << "score " << describe(profile.score) << "\nselected until the sum reaches "
            << profile.top_p << "; " << with_commas(profile.totals.num_tokens)
            << " tokens, K = " << profile.totals.experts_per_token << "\nwrote " << flags.output << " and "
            << profile_path(flags.output).string() << std::endl;
  return 0;
}

}  // namespace

void register_profile_experts(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<ProfileFlags>();
  CLI::App* command = app.add_subcommand(
      "profile-experts",
      "which experts a task's data uses, layer by layer; selects those that trainable: [esft] trains");
  command->add_option("--model", flags->model, "model folder with experts")->required();
  command->add_option("--data", flags->data, "one or more .jsonl or .json files of the task")->required();
  command->add_option("--output", flags->output, "selection to write, for esft.experts of a recipe")->required();
  command->add_option("--format", flags->format, "of the records: " + join(record_format_names(), ", "))
      ->capture_default_str();
  command->add_option("--template", flags->chat_template, "prompt template by name; auto: the model's own, else alpaca")
      ->capture_default_str();
  command->add_option("--score", flags->score, "token: share of the assignments; gate: mean weight")
      ->capture_default_str();
  command
      ->add_option("--top-p", flags->top_p,
                   "select the best experts of a layer until their scores sum to this (default: 0.2 token, 0.1 gate)")
      ->check(CLI::Range(1e-6, 1.0));
  command->add_option("--max-tokens", flags->options.max_tokens, "tokens of samples, drawn at random, to look at")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32));
  command
      ->add_option("--max-seq-len", flags->max_seq_len,
                   "cut longer samples (default: 4096, or the model's positions if those are fewer)")
      ->check(CLI::Range(std::int64_t{8}, std::int64_t{1} << 32));
  command->add_option("--limit", flags->limit, "only the first n records of each file; 0: all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--max-bad-records", flags->max_bad_records, "broken records that may be left out")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--seed", flags->seed, "of the draw of samples")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "compute type: float32 or bfloat16")->capture_default_str();
  command->add_flag("--shared-experts", flags->shared_experts, "shared experts train too");
  command->add_flag("--non-expert-modules", flags->non_expert_modules,
                    "everything that is no expert trains too, router and DAG included");
  command->add_flag("--json", flags->json, "the profile as one JSON document on stdout");
  command->callback([flags, &run] { run = [flags] { return profile_command(*flags); }; });
}

}  // namespace dagmoe
