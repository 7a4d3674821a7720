#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/evaluate.h"

namespace dagmoe {

/// One score of a results document.
struct Score {
  std::string task, metric;
  double value = 0.0;
  std::optional<double> standard_error = {};
  bool higher_is_better = true;
  std::string filter = "none";
  /// As a table shows the metric: "exact_match (strict-match)".
  std::string shown_metric() const;
};
/// Of a results.json, ours or lm-evaluation-harness's; `where` is its path. Throws InputError.
std::vector<Score> read_scores(const Json& results, const std::string& where);

/// What each document gave a metric, so that two runs can be compared document by document.
struct DocumentScore {
  std::int64_t doc_id = 0;
  std::string doc_hash;
  double value = 0.0, weight = 1.0;  ///< of a loss: nats and tokens
};
/// By task, metric and filter.
using DocumentScores = std::map<std::string, std::vector<DocumentScore>>;
std::string score_key(const std::string& task, const std::string& metric, const std::string& filter);
DocumentScores document_scores(std::span<const TaskResult> results);
/// Of every samples_TASK.jsonl in a folder, ours or lm-evaluation-harness's; of several of one task the last by name.
/// Throws InputError for a broken line.
DocumentScores read_document_scores(const std::filesystem::path& folder);

/// An earlier run: its scores, and its samples where it kept them.
struct EarlierRun {
  std::string name;  ///< as it was given
  std::vector<Score> scores;
  DocumentScores documents;
};
/// From a results.json or the folder it lies in. Throws InputError.
EarlierRun read_earlier_run(const std::filesystem::path& file_or_folder);

/// How a difference was tested.
enum class PairedTest {
  kNone,      ///< the runs are taken as independent, which overstates the error of a difference on the same documents
  kMcNemar,   ///< exact binomial for fewer than 25 documents that changed, else chi-square with continuity correction
  kBootstrap  ///< 10,000 resamples of the documents, fixed seed
};
/// A score that both runs have.
struct ScoreChange {
  Score before, after;
  PairedTest test = PairedTest::kNone;
  std::optional<double> standard_error = {}, p_value = {};
  std::string why_unpaired = {};
  double difference() const { return after.value - before.value; }
};
/// In the order of `after`; paired where both have the same documents.
std::vector<ScoreChange> compare_runs(const EarlierRun& before, std::span<const Score> after,
                                      const DocumentScores& documents);
/// Tasks, Metric, Before, After, Difference, Stderr, Test and p, and below it why rows are unpaired.
std::string comparison_table(std::span<const ScoreChange> changes);

/// Two-sided p of the documents that only one run had right.
double mcnemar_p(std::int64_t only_before, std::int64_t only_after);

}  // namespace dagmoe
