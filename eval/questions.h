#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/prompt_template.h"
#include "eval/dataset.h"
#include "eval/task.h"

namespace dagmoe {

/// One record, ready to be asked. What a task's output type does not have stays empty.
struct Question {
  Json doc;            ///< the record after preprocessing, with `label` from a labels file
  std::string text;    ///< doc_to_text
  std::string target;  ///< what samples.jsonl calls target: the gold choice's index or text, the expected answer,
                       ///< the continuation or the text that is scored
  std::vector<std::string> choices;
  std::string continuation;                   ///< of choices that are prompts
  std::int64_t gold = 0;                      ///< outside the choices: no answer is right
  std::int64_t num_words = 0, num_bytes = 0;  ///< what rolling metrics divide by
  std::int64_t line = 0;

  bool has_gold_choice() const { return gold >= 0 && gold < static_cast<std::int64_t>(choices.size()); }
};
/// All questions of a file. Throws InputError with every bad record as "file:line: reason", twenty at most.
std::vector<Question> read_questions(const TaskConfig& task, const DatasetFiles& files);
/// The same for the file that examples are taken from.
std::vector<Question> read_examples(const TaskConfig& task, const DatasetFiles& files);

/// One instruction record, as text whose supervised pieces are scored.
struct LossSample {
  Json doc;
  std::vector<PromptPiece> pieces;
  std::int64_t line = 0;
};
/// The same for valid_loss. The model folder fills in what the task's template takes from a checkpoint.
std::vector<LossSample> read_loss_samples(const TaskConfig& task, const DatasetFiles& files,
                                          const std::filesystem::path& model_folder);

}  // namespace dagmoe
