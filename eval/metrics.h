#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/language_model.h"

namespace dagmoe {

/// What a document or a task is judged by (contracts.md 4.2).
enum class Metric {
  kAcc,            ///< the choice with the highest log-likelihood is gold; of one continuation: it is greedy
  kAccNorm,        ///< the same with log-likelihoods per Unicode code point of the choice, without its delimiter
  kAccBytes,       ///< per UTF-8 byte
  kAccMutualInfo,  ///< of log P(choice | context) - log P(choice)
  kExactMatch,     ///< the answer equals the target; of choices: the gold one is greedy
  kPerplexity,     ///< exp of minus the mean log-likelihood of a document
  kWordPerplexity,
  kBytePerplexity,
  kBitsPerByte,
  kLoss  ///< nats per supervised token
};
std::string_view metric_name(Metric metric);
/// nullopt for an unknown name.
std::optional<Metric> metric_named(std::string_view name);
bool is_higher_better(Metric metric);

/// Index of the choice that kAcc, kAccNorm or kAccBytes picks; the lowest of equals. `choices` and `scores` have one
/// length, at least 1.
std::int64_t pick_choice(Metric metric, std::span<const std::string> choices, std::span<const LogLikelihood> scores);
/// The same for kAccMutualInfo; `alone` are the choices without their context.
std::int64_t pick_by_mutual_info(std::span<const LogLikelihood> scores, std::span<const LogLikelihood> alone);

/// What one document gives a metric. The weight counts for the three that divide by words or bytes.
struct MetricValue {
  double value = 0.0, weight = 1.0;
};
/// A metric over documents; the standard error is absent where the metric has none, or of a single document.
struct Aggregate {
  double value = 0.0;
  std::optional<double> standard_error = {};
};
/// The score that the (weighted) mean of the documents' values is.
double score_of_mean(Metric metric, double mean);
/// Not for kLoss, which is a ratio of sums (eval/valid_loss.h). The standard error of kPerplexity is a bootstrap.
Aggregate aggregate(Metric metric, std::span<const MetricValue> values);

/// Sum from left to right, then one division.
double mean(std::span<const double> values);
/// Standard error of the mean: sample deviation (n - 1) / sqrt(n); nullopt for fewer than two values.
std::optional<double> mean_standard_error(std::span<const double> values);
/// Of exp(-mean(values)): sample deviation over 100,000 resamples, chunk c of 1,000 drawn by CPython's
/// Random(c).choices, so that it is lm-evaluation-harness's number and not only its method. Chunks run on all cores.
double bootstrap_perplexity_error(std::span<const double> values);

/// Scores of a group's tasks as one (contracts.md 4.2): weighted by documents with the pooled standard error, or the
/// plain mean. `sizes` are the documents of each task.
Aggregate aggregate_tasks(std::span<const Aggregate> scores, std::span<const std::int64_t> sizes, bool weight_by_size);

}  // namespace dagmoe
