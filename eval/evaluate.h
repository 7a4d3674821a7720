#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "eval/language_model.h"
#include "eval/questions.h"
#include "eval/task.h"

namespace dagmoe {

struct EvalOptions {
  std::filesystem::path data_dir = "datasets";             ///< what a task's relative paths are resolved against
  std::map<std::string, DatasetFiles> datasets = {};       ///< --dataset TASK=FILE[,LABELS]
  std::map<std::string, DatasetFiles> fewshot_pools = {};  ///< --fewshot TASK=FILE[,LABELS]
  double limit = 0.0;                            ///< first n documents; below 1 a share of them, rounded up; 0: all
  std::optional<std::int64_t> num_fewshot = {};  ///< absent: each task's own
  std::uint64_t fewshot_seed = 1234;             ///< lm-evaluation-harness's default
  std::filesystem::path model_folder = {};       ///< for valid_loss: BOS, EOS and the system turn of its chat template
};

/// "TASK=FILE" or "TASK=FILE,LABELS", as --dataset and --fewshot take it; split at the first '='. Throws ConfigError.
std::pair<std::string, DatasetFiles> parse_dataset_option(std::string_view text);
/// Throws ConfigError when `datasets` or `fewshot_pools` name a task that is not among `tasks`, with the nearest name.
void check_options(const EvalOptions& options, std::span<const TaskConfig> tasks);

struct MetricResult {
  std::string name;
  double value = 0.0;
  std::optional<double> standard_error = {};  ///< absent: N/A
  bool higher_is_better = true;
};

/// One document of a task. A multiple-choice document has one request and response a choice; valid_loss has a loss.
struct SampleResult {
  std::int64_t doc_id = 0;
  Json doc = {};
  std::string target = {};
  std::vector<LogLikelihoodRequest> requests = {};
  std::vector<LogLikelihood> responses = {};
  SampleLoss loss = {};
  std::vector<std::pair<std::string, double>> metrics = {};
};

struct TaskResult {
  TaskConfig task;
  std::int64_t num_fewshot = 0;
  std::int64_t num_documents = 0, num_documents_in_file = 0;
  std::vector<MetricResult> metrics = {};
  std::vector<SampleResult> samples = {};
  std::vector<std::string> notes =
      {};                ///< one line each: contexts cut, borders merged, gold labels outside the choices
  double seconds = 0.0;  ///< spent by the model
};

/// Called as requests finish: how many of how many.
using ProgressHook = std::function<void(std::int64_t done, std::int64_t total)>;

/// Asks the model every document of a task's file and scores its answers. Throws InputError for a file that is missing
/// or broken, ConfigError for settings that do not fit the task (few-shot examples without a pool).
TaskResult evaluate(const TaskConfig& task, LanguageModel& model, const EvalOptions& options = {},
                    const ProgressHook& on_progress = {});

}  // namespace dagmoe
