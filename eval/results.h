#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/evaluate.h"
#include "eval/group_scores.h"

namespace dagmoe {

/// What results.json says about the run as a whole.
struct RunInfo {
  std::string model = {};                  ///< folder
  std::vector<std::string> adapters = {};  ///< folders on it
  std::string dtype = {}, device = {};
  std::string chat_template = {};  ///< the checkpoint's, when prompts are conversations
  double seconds = 0.0;            ///< of the whole evaluation
  bool log_samples = false;        ///< fills task_hashes
};

/// The table as lm-evaluation-harness prints it, in Markdown, 4 decimals: groups with what is in them, then the other
/// tasks by name; metrics by name. With groups a second table has only those.
std::string results_table(std::span<const TaskResult> results, std::span<const GroupResult> groups = {});
/// lm-evaluation-harness's results document (contracts.md 4.5), and `engine`: what each task's answers took.
Json results_json(std::span<const TaskResult> results, std::span<const GroupResult> groups, const RunInfo& run,
                  const EvalOptions& options);
/// One object per document and filter, with lm-evaluation-harness's keys and hashes; the lines of samples_TASK.jsonl.
std::vector<Json> samples_json(const TaskResult& result);
/// Writes results.json and, with run.log_samples, samples_TASK.jsonl into `folder`, which is made if missing. The same
/// files get lm-evaluation-harness's names too: MODEL/results_DATE.json, MODEL/samples_TASK_DATE.jsonl.
void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results,
                   std::span<const GroupResult> groups, const RunInfo& run, const EvalOptions& options);

}  // namespace dagmoe
