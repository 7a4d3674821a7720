#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "eval/eval_options.h"
#include "eval/language_model.h"
#include "eval/questions.h"
#include "eval/task.h"

namespace dagmoe {

/// What one document asks a model. The output type says which of them.
struct DocumentRequests {
  std::vector<LogLikelihoodRequest> scores = {};  ///< of each choice, then, for acc_mutual_info, of each choice alone
  std::string text = {};                          ///< loglikelihood_rolling
  GenerateRequest generation = {};
  SampleLossRequest loss = {};
};
/// And what the model said.
struct DocumentAnswers {
  std::vector<LogLikelihood> scores = {};  ///< one for each request; of loglikelihood_rolling one
  std::string text = {};
  SampleLoss loss = {};
};

/// A task with its data read and its prompts written: everything that can be wrong before a model is asked.
struct TaskRequests {
  TaskConfig task;  ///< with the overrides of the options
  std::int64_t num_fewshot = 0, num_documents_in_file = 0;
  std::filesystem::path data_file;
  std::vector<Question> questions;      ///< the documents; for valid_loss only doc and line of each
  std::vector<DocumentRequests> asked;  ///< by document
  std::vector<std::string> notes;

  /// SHA-256 of every request: two runs with the same one ask the same.
  std::string hash() const;
  /// "file:line", and which choice: where a request comes from.
  std::string place_of(std::size_t document, std::size_t request) const;
};
/// Throws InputError for a file that is missing or broken, ConfigError for settings that do not fit the task (few-shot
/// examples without a pool).
TaskRequests prepare_task(const TaskConfig& task, const EvalOptions& options);

}  // namespace dagmoe
