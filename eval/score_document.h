#pragma once

#include <span>

#include "eval/evaluate.h"

namespace dagmoe {

/// Judges one document by its answers alone. Moves its question and requests into the sample. Throws InputError with
/// the reason only.
SampleResult score_document(TaskRequests& requests, std::size_t document, DocumentAnswers answers);

/// A metric over the documents so far; cheap to ask at any time.
class RunningScore {
 public:
  explicit RunningScore(const TaskConfig& task) : metric_(task.metrics.front()) {}
  void add(const SampleResult& sample);
  double value() const;

 private:
  Metric metric_;
  double sum_ = 0.0, weight_ = 0.0;
};

/// Every metric of the task over its samples, filter by filter.
std::vector<MetricResult> aggregate_samples(const TaskConfig& task, std::span<const SampleResult> samples);

}  // namespace dagmoe
