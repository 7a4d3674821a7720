#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/prompt_template.h"
#include "data/record.h"
#include "eval/metrics.h"
#include "eval/preprocess.h"
#include "eval/text_template.h"

namespace dagmoe {

enum class OutputType { kMultipleChoice, kValidLoss };
/// How a data file is read. A file that ends in .txt is always read as kHellaswagTxt.
enum class DatasetFormat {
  kJsonl,
  kHellaswagTxt,  ///< llama.cpp's form, six lines a document: context, gold, four endings; used verbatim, never
                  ///< preprocessed
};

/// A task file (eval/tasks/*.yaml), with lm-evaluation-harness's keys where they mean the same.
struct TaskConfig {
  std::string task;
  std::optional<double> version;  ///< printed with every score; scores of different versions do not compare
  OutputType output_type = OutputType::kMultipleChoice;
  std::string dataset_path;  ///< relative to --data-dir
  std::string labels_path;   ///< a .lst file of one gold index a line, for records without a label of their own
  DatasetFormat dataset_format = DatasetFormat::kJsonl;
  std::int64_t num_fewshot = 0;

  // multiple_choice
  Preprocess preprocess = Preprocess::kNone;
  std::string description;                  ///< begins every prompt; carries its own newlines
  TextTemplate doc_to_text;                 ///< the prompt
  std::vector<TextTemplate> doc_to_choice;  ///< the choices; one that is a single field may give several
  TextTemplate doc_to_target;               ///< the gold choice: its index, or one of target_labels
  std::vector<TextTemplate>
      target_labels;  ///< the labels of the choices, in their order; none: doc_to_target is an index
  std::string target_delimiter = " ", fewshot_delimiter = "\n\n";
  /// lm-evaluation-harness draws one more example than it uses when a task has neither test nor few-shot split
  /// (contracts.md 4.4).
  bool fewshot_draws_one_more = false;
  std::vector<ChoiceMetric> metrics;

  // valid_loss
  RecordFormat record_format = RecordFormat::kAlpaca;
  PromptTemplate prompt_template = PromptTemplate::kAlpaca;
  std::int64_t max_seq_len = 0;  ///< tokens; 0: the model's maximum

  std::string source;  ///< the task file as read, for results.json
};

/// Throws ConfigError with every problem of the file.
TaskConfig read_task(const std::filesystem::path& file);
/// The same from text; `name` stands where the path would in messages.
TaskConfig parse_task(std::string_view text, const std::string& name);

/// Where task names are looked up: the environment's DAGMOE_TASKS, else eval/tasks of the current folder, else of the
/// nearest folder above the program. Throws ConfigError when there is none.
std::filesystem::path tasks_folder();
/// Names of the task files in a folder, sorted.
std::vector<std::string> task_names(const std::filesystem::path& folder);
/// Names, or paths of .yaml files, in the given order. Throws ConfigError with every problem: an unknown name (with the
/// nearest known one), a name given twice, a broken file.
std::vector<TaskConfig> load_tasks(std::span<const std::string> names_or_paths);

}  // namespace dagmoe
