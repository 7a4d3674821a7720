#include "eval/score_document.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "eval/valid_loss.h"

namespace dagmoe {
namespace {

bool is_right(Metric metric, const Question& question, const DocumentAnswers& answers) {
  const std::size_t num_choices = question.choices.size();
  const std::span<const LogLikelihood> all(answers.scores);
  const auto scores = all.first(num_choices);
  if (metric == Metric::kExactMatch)
    return question.has_gold_choice() && scores[static_cast<std::size_t>(question.gold)].is_greedy;
  if (metric == Metric::kAccMutualInfo)
    return pick_by_mutual_info(scores, all.subspan(num_choices, num_choices)) == question.gold;
  return pick_choice(metric, question.choices, scores) == question.gold;
}

void score_choices(const TaskConfig& task, const Question& question, SampleResult& sample) {
  for (const Metric metric : task.metrics) {
    sample.metrics.push_back(
        {.name = std::string(metric_name(metric)), .value = is_right(metric, question, sample.answers) ? 1.0 : 0.0});
  }
}

void score_continuation(const TaskConfig& task, SampleResult& sample) {
  const LogLikelihood& score = sample.answers.scores.front();
  for (const Metric metric : task.metrics) {
    const double value = metric == Metric::kPerplexity ? score.log_prob : score.is_greedy ? 1.0 : 0.0;
    sample.metrics.push_back({.name = std::string(metric_name(metric)), .value = value});
  }
}

void score_rolling(const TaskConfig& task, const Question& question, SampleResult& sample) {
  for (const Metric metric : task.metrics) {
    const auto weight = metric == Metric::kWordPerplexity ? question.num_words : question.num_bytes;
    sample.metrics.push_back({.name = std::string(metric_name(metric)),
                              .value = sample.answers.scores.front().log_prob,
                              .weight = static_cast<double>(weight),
                              .has_weight = true});
  }
}

void score_answer(const TaskConfig& task, SampleResult& sample) {
  for (const FilterPipeline& pipeline : task.filters) {
    sample.filtered.push_back(filtered(pipeline, sample.answers.text));
    const bool is_match = matches_exactly(task.exact_match, sample.filtered.back(), sample.target);
    sample.metrics.push_back({.name = std::string(metric_name(Metric::kExactMatch)),
                              .filter = pipeline.name,
                              .value = is_match ? 1.0 : 0.0});
  }
}

void score_loss(SampleResult& sample) {
  const SampleLoss& loss = sample.answers.loss;
  if (loss.num_tokens == 0) return;
  sample.metrics.push_back(
      {.name = std::string(metric_name(Metric::kLoss)), .value = loss.nats / static_cast<double>(loss.num_tokens)});
}

std::vector<MetricResult> aggregate_losses(std::span<const SampleResult> samples) {
  std::vector<SampleLoss> losses;
  for (const SampleResult& sample : samples) losses.push_back(sample.answers.loss);
  const MeanLoss loss = mean_loss(losses);
  MetricResult result{.name = std::string(metric_name(Metric::kLoss)), .value = loss.value, .higher_is_better = false};
  if (std::isfinite(loss.standard_error)) result.standard_error = loss.standard_error;
  return {result};
}

}  // namespace

SampleResult score_document(TaskRequests& requests, std::size_t document, DocumentAnswers answers) {
  Question& question = requests.questions[document];
  const TaskConfig& task = requests.task;
  SampleResult sample{.doc_id = static_cast<std::int64_t>(document),
                      .doc = std::move(question.doc),
                      .target = std::move(question.target),
                      .requests = std::move(requests.asked[document]),
                      .answers = std::move(answers)};
  switch (task.output_type) {
    case OutputType::kMultipleChoice:
      score_choices(task, question, sample);
      break;
    case OutputType::kLogLikelihood:
      score_continuation(task, sample);
      break;
    case OutputType::kLogLikelihoodRolling:
      score_rolling(task, question, sample);
      break;
    case OutputType::kGenerateUntil:
      score_answer(task, sample);
      break;
    case OutputType::kValidLoss:
      score_loss(sample);
      break;
  }
  return sample;
}

void RunningScore::add(const SampleResult& sample) {
  if (metric_ == Metric::kLoss) {
    sum_ += sample.answers.loss.nats;
    weight_ += static_cast<double>(sample.answers.loss.num_tokens);
  } else if (!sample.metrics.empty()) {
    sum_ += sample.metrics.front().value;
    weight_ += sample.metrics.front().weight;
  }
}

double RunningScore::value() const { return score_of_mean(metric_, weight_ == 0.0 ? 0.0 : sum_ / weight_); }

std::vector<MetricResult> aggregate_samples(const TaskConfig& task, std::span<const SampleResult> samples) {
  if (task.output_type == OutputType::kValidLoss) return aggregate_losses(samples);
  std::vector<MetricResult> results;
  // Every sample of a task has the same metrics in the same order.
  for (std::size_t m = 0; m < samples.front().metrics.size(); ++m) {
    std::vector<MetricValue> values;
    for (const SampleResult& sample : samples) values.push_back({sample.metrics[m].value, sample.metrics[m].weight});
    const SampleMetric& first = samples.front().metrics[m];
    const Metric metric = *metric_named(first.name);
    const Aggregate score = aggregate(metric, values);
    results.push_back({first.name, score.value, score.standard_error, is_higher_better(metric), first.filter});
  }
  return results;
}

}  // namespace dagmoe
