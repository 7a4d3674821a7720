#include "eval/metrics.h"

#include <array>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::array kMetrics = {ChoiceMetric::kAcc, ChoiceMetric::kAccNorm, ChoiceMetric::kAccBytes};

double length_of(ChoiceMetric metric, std::string_view choice) {
  switch (metric) {
    case ChoiceMetric::kAcc:
      return 1.0;
    case ChoiceMetric::kAccNorm:
      return static_cast<double>(count_code_points(choice));
    case ChoiceMetric::kAccBytes:
      return static_cast<double>(choice.size());
  }
  throw InternalError("length_of: unknown metric");
}

}  // namespace

std::string_view metric_name(ChoiceMetric metric) {
  switch (metric) {
    case ChoiceMetric::kAcc:
      return "acc";
    case ChoiceMetric::kAccNorm:
      return "acc_norm";
    case ChoiceMetric::kAccBytes:
      return "acc_bytes";
  }
  throw InternalError("metric_name: unknown metric");
}

std::optional<ChoiceMetric> choice_metric_named(std::string_view name) {
  for (const ChoiceMetric metric : kMetrics) {
    if (metric_name(metric) == name) return metric;
  }
  return std::nullopt;
}

const std::vector<std::string>& choice_metric_names() {
  static const std::vector<std::string> names = {"acc", "acc_norm", "acc_bytes"};
  return names;
}

std::int64_t pick_choice(ChoiceMetric metric, std::span<const std::string> choices,
                         std::span<const LogLikelihood> scores) {
  std::size_t best = 0;
  double best_score = 0.0;
  for (std::size_t c = 0; c < choices.size(); ++c) {
    // An empty choice scores minus infinity per character, as in numpy.
    const double score = scores[c].log_prob / length_of(metric, choices[c]);
    if (c == 0 || score > best_score) best = c, best_score = score;
  }
  return static_cast<std::int64_t>(best);
}

double mean(std::span<const double> values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

std::optional<double> mean_standard_error(std::span<const double> values) {
  if (values.size() < 2) return std::nullopt;
  const auto n = static_cast<double>(values.size());
  const double center = mean(values);
  double squares = 0.0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / (n - 1.0)) / std::sqrt(n);
}

}  // namespace dagmoe
