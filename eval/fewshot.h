#pragma once

#include <cstddef>
#include <vector>

#include "eval/eval_options.h"
#include "eval/python_random.h"
#include "eval/questions.h"
#include "eval/task.h"

namespace dagmoe {

/// Where a task's data and its examples lie; both checked to be there. Throws InputError.
DatasetFiles dataset_of(const TaskConfig& task, const EvalOptions& options);

/// Chooses each document's examples, in the order of the documents (contracts.md 4.4).
class FewshotExamples {
 public:
  /// Reads the file of examples when any are asked for, or when the task's description has fields. Throws ConfigError
  /// when there is none or it is too small, InputError when it is broken.
  FewshotExamples(const TaskConfig& task, const EvalOptions& options, std::int64_t num_fewshot);
  /// For the next document.
  std::vector<const Question*> next(const Question& question);
  /// The task's description; its fields are those of the first example.
  std::string description() const;

 private:
  std::vector<const Question*> draw_without(const Question& question);
  void require_enough(const DatasetFiles& files) const;

  const TaskConfig& task_;
  PythonRandom random_;
  std::size_t num_examples_;
  std::vector<Question> pool_;
};

}  // namespace dagmoe
