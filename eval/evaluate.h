#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/eval_options.h"
#include "eval/language_model.h"
#include "eval/questions.h"
#include "eval/task.h"
#include "eval/task_requests.h"

namespace dagmoe {

struct MetricResult {
  std::string name;
  double value = 0.0;
  std::optional<double> standard_error = {};  ///< absent: N/A
  bool higher_is_better = true;
  std::string filter = "none";
};

/// One document's part in a metric. The weight is what word and byte perplexities divide by.
struct SampleMetric {
  std::string name, filter = "none";
  double value = 0.0, weight = 1.0;
  bool has_weight = false;
  bool operator==(const SampleMetric&) const = default;
};

/// One document of a task: what was asked, what came back, what it counts.
struct SampleResult {
  std::int64_t doc_id = 0;
  Json doc = {};
  std::string target = {};
  DocumentRequests requests = {};
  DocumentAnswers answers = {};
  std::vector<std::string> filtered = {};  ///< generate_until: the answer under each filter of the task
  std::vector<SampleMetric> metrics = {};
};

struct TaskResult {
  TaskConfig task;
  std::int64_t num_fewshot = 0;
  std::int64_t num_documents = 0, num_documents_in_file = 0, num_resumed = 0;
  std::vector<MetricResult> metrics = {};
  std::vector<SampleResult> samples = {};
  std::vector<std::string> notes =
      {};                    ///< one line each: contexts cut, borders merged, gold labels outside the choices
  double seconds = 0.0;      ///< spent by the model
  EngineCounts engine = {};  ///< what answering took
};

/// How far an evaluation is: documents, and the first metric over those that are finished.
struct EvalProgress {
  std::int64_t done = 0, total = 0;
  std::string metric;
  double value = 0.0;
};
/// Called as documents finish.
using ProgressHook = std::function<void(const EvalProgress&)>;

/// Asks the model every document and scores its answers. Throws InputError for a request that cannot be scored, with
/// its file and line.
TaskResult evaluate(TaskRequests requests, LanguageModel& model, const EvalOptions& options = {},
                    const ProgressHook& on_progress = {});
/// The same after prepare_task.
TaskResult evaluate(const TaskConfig& task, LanguageModel& model, const EvalOptions& options = {},
                    const ProgressHook& on_progress = {});

}  // namespace dagmoe
