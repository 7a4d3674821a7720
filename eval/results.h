#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/evaluate.h"

namespace dagmoe {

/// What results.json says about the run as a whole.
struct RunInfo {
  std::string model = {};    ///< folder
  std::string adapter = {};  ///< folder; may be empty
  std::string dtype = {}, device = {};
  double seconds = 0.0;      ///< of the whole evaluation
  bool log_samples = false;  ///< fills task_hashes
};

/// The table as lm-evaluation-harness prints it, in Markdown, 4 decimals: tasks in the given order, metrics by name.
std::string results_table(std::span<const TaskResult> results);
/// lm-evaluation-harness's results document (contracts.md 4.5).
Json results_json(std::span<const TaskResult> results, const RunInfo& run, const EvalOptions& options);
/// One object per document, with lm-evaluation-harness's keys and hashes; the lines of samples_TASK.jsonl.
Json sample_json(const TaskResult& result, const SampleResult& sample);
/// Writes results.json and, with run.log_samples, samples_TASK.jsonl into `folder`, which is made if missing.
void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results, const RunInfo& run,
                   const EvalOptions& options);

/// One score of a results document: what a before/after table needs.
struct Score {
  std::string task, metric;
  double value = 0.0;
  std::optional<double> standard_error = {};
  bool higher_is_better = true;
};
/// Of a results.json, ours or lm-evaluation-harness's; `where` is its path. Throws InputError.
std::vector<Score> read_scores(const Json& results, const std::string& where);

/// A score that both documents have. The standard error of the difference treats the runs as independent draws; both
/// saw the same documents, so the true one is smaller.
struct ScoreChange {
  Score before, after;
  double difference() const { return after.value - before.value; }
  std::optional<double> standard_error() const;
};
/// In the order of `after`.
std::vector<ScoreChange> compare_scores(std::span<const Score> before, std::span<const Score> after);
/// Tasks, Metric, Before, After, Difference, Stderr in the same form as results_table.
std::string comparison_table(std::span<const ScoreChange> changes);

}  // namespace dagmoe
