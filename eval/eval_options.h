#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/prompt_template.h"
#include "eval/dataset.h"
#include "eval/task.h"

namespace dagmoe {

/// What --gen-kwargs changes in every task that generates.
struct GenerationOverrides {
  std::optional<std::vector<std::string>> until = {};
  std::optional<std::int64_t> max_gen_toks = {};
  std::optional<bool> do_sample = {};
  std::optional<double> temperature = {}, top_p = {};
};

struct EvalOptions {
  std::filesystem::path data_dir = "datasets";             ///< what a task's relative paths are resolved against
  std::map<std::string, DatasetFiles> datasets = {};       ///< --dataset TASK=FILE[,LABELS]
  std::map<std::string, DatasetFiles> fewshot_pools = {};  ///< --fewshot TASK=FILE[,LABELS]
  double limit = 0.0;                            ///< first n documents; below 1 a share of them, rounded up; 0: all
  std::optional<std::int64_t> num_fewshot = {};  ///< absent: each task's own
  std::uint64_t fewshot_seed = 1234;             ///< lm-evaluation-harness's default
  std::filesystem::path model_folder = {};       ///< for valid_loss: BOS, EOS and the system turn of its chat template

  std::string system_instruction = {};         ///< in front of the task's description
  std::optional<ChatFormat> chat_format = {};  ///< present: prompts are conversations in this form
  bool fewshot_as_multiturn = false;           ///< examples are turns of their own
  GenerationOverrides generation = {};

  std::filesystem::path journal_folder = {};  ///< answers are kept here as they come; empty: nowhere
  bool resume = false;                        ///< answers of an earlier run are taken from there
  std::string model_identity = {};            ///< a hash of weights, settings and dtype: whose answers these are
};

/// "TASK=FILE" or "TASK=FILE,LABELS", as --dataset and --fewshot take it; split at the first '='. Throws ConfigError.
std::pair<std::string, DatasetFiles> parse_dataset_option(std::string_view text);
/// "max_gen_toks=64,temperature=0.7" or a JSON object, which until with several texts needs. Throws ConfigError.
GenerationOverrides parse_generation_option(std::string_view text);
/// Throws ConfigError when `datasets` or `fewshot_pools` name a task that is not among `tasks`, with the nearest name,
/// and for settings that nothing uses.
void check_options(const EvalOptions& options, std::span<const TaskConfig> tasks);

}  // namespace dagmoe
