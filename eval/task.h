#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/prompt_template.h"
#include "data/record.h"
#include "eval/answer_filter.h"
#include "eval/metrics.h"
#include "eval/preprocess.h"
#include "eval/text_template.h"

namespace dagmoe {

enum class OutputType {
  kMultipleChoice,
  kLogLikelihood,         ///< of one continuation
  kLogLikelihoodRolling,  ///< of a whole text
  kGenerateUntil,
  kValidLoss  ///< of instruction data; not one of lm-evaluation-harness's
};
std::string_view output_type_name(OutputType type);

/// How a data file without an extension that says so is read. .csv and .tsv files are tables, a .txt file is the text
/// form that the task names.
enum class DatasetFormat {
  kJsonl,         ///< JSON lines, one JSON array, or (.json with records_field) one JSON object
  kHellaswagTxt,  ///< llama.cpp's form, six lines a document: context, gold, four endings; never preprocessed
  kWikitextTxt,   ///< running text whose "= title =" lines begin a document each
  kBbhPrompt      ///< upstream's cot-prompts: canary, description, then question and answer of each example
};

/// How long and how an answer is generated.
struct GenerationSettings {
  std::vector<std::string> until = {};
  std::int64_t max_gen_toks = 256;
  bool do_sample = false;
  double temperature = 0.0, top_p = 1.0;
};

/// Where the examples in front of a question come from.
enum class FewshotSampler {
  kDefault,  ///< drawn anew for every document (contracts.md 4.4)
  kFirstN
};

/// A task file (eval/tasks/*.yaml), with lm-evaluation-harness's keys where they mean the same.
struct TaskConfig {
  std::string task;
  std::string alias;              ///< as the table calls it; "" for the name
  std::optional<double> version;  ///< printed with every score; scores of different versions do not compare
  OutputType output_type = OutputType::kMultipleChoice;
  std::string dataset_path;   ///< relative to --data-dir
  std::string dataset_name;   ///< which part of a data set this is, for records that do not say so (MMLU's subject)
  std::string labels_path;    ///< a .lst file of one gold index a line, for records without a label of their own
  std::string records_field;  ///< of a .json file that is one object: the list of records in it
  std::vector<std::string> columns;  ///< names of a table's columns; none: its first line has them
  DatasetFormat dataset_format = DatasetFormat::kJsonl;
  Preprocess preprocess = Preprocess::kNone;
  std::int64_t shuffle_seed = 0;  ///< for a preprocess that shuffles

  std::int64_t num_fewshot = 0;
  std::string fewshot_path;  ///< default pool of examples, relative to --data-dir
  DatasetFormat fewshot_format = DatasetFormat::kJsonl;
  FewshotSampler fewshot_sampler = FewshotSampler::kDefault;
  /// lm-evaluation-harness draws one more example than it uses when a task has neither test nor few-shot split
  /// (contracts.md 4.4).
  bool fewshot_draws_one_more = false;

  TextTemplate description;    ///< begins every prompt; carries its own newlines; its fields are the first example's
  TextTemplate doc_to_text;    ///< the prompt
  TextTemplate doc_to_target;  ///< multiple choice: the gold choice as its index, its text, or one of target_labels;
                               ///< else the continuation, the text or the expected answer
  std::string target_delimiter = " ", fewshot_delimiter = "\n\n";
  std::vector<Metric> metrics;

  // multiple_choice
  std::vector<TextTemplate> doc_to_choice;  ///< the choices; one that is a single field may give several
  /// When it is there the choices are prompts, and this is the continuation that all of them are asked for.
  TextTemplate doc_to_continuation;
  std::vector<TextTemplate> target_labels;  ///< the labels of the choices, in their order

  TextTemplate doc_to_words;  ///< loglikelihood_rolling: the text whose words and bytes are counted

  // generate_until
  GenerationSettings generation;
  std::vector<FilterPipeline> filters;  ///< at least one
  ExactMatch exact_match;

  // valid_loss
  RecordFormat record_format = RecordFormat::kAlpaca;
  PromptTemplate prompt_template = PromptTemplate::kAlpaca;
  std::int64_t max_seq_len = 0;  ///< tokens; 0: the model's maximum

  std::string source;  ///< the task file as read, for results.json

  const std::string& shown_name() const { return alias.empty() ? task : alias; }
};

/// Throws ConfigError with every problem of the text; `name` stands in messages where the path would.
TaskConfig parse_task(std::string_view text, const std::string& name);
/// The same from a file; of one with `variants` (eval/task_catalog.h) the one that is named.
TaskConfig read_task(const std::filesystem::path& file, const std::string& variant = "");
/// ${variant} becomes the variant, ${variant_words} the same with spaces for underscores.
std::string with_variant(std::string text, const std::string& variant);

}  // namespace dagmoe
