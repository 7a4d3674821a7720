#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/prompt_template.h"
#include "eval/task.h"

namespace dagmoe {

/// Where one task's data lies, when the command line says so: "FILE" or "FILE,LABELS".
struct DatasetFiles {
  std::filesystem::path data, labels;
};

/// One multiple-choice record, ready to be asked.
struct Question {
  Json doc;          ///< the record after preprocessing, with `label` from a labels file
  std::string text;  ///< doc_to_text
  std::vector<std::string> choices;
  std::int64_t gold = 0;  ///< outside the choices: no answer is right
  std::string target;     ///< what samples.jsonl calls target
  std::int64_t line = 0;
};
/// All questions of a file. Throws InputError with every bad record as "file:line: reason", twenty at most.
std::vector<Question> read_questions(const TaskConfig& task, const DatasetFiles& files);

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
