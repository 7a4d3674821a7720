#include "eval/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "eval/python_random.h"

namespace dagmoe {
namespace {

struct MetricInfo {
  Metric metric;
  std::string_view name;
  bool is_higher_better;
};
constexpr std::array kMetrics = {
    MetricInfo{Metric::kAcc, "acc", true},
    MetricInfo{Metric::kAccNorm, "acc_norm", true},
    MetricInfo{Metric::kAccBytes, "acc_bytes", true},
    MetricInfo{Metric::kAccMutualInfo, "acc_mutual_info", true},
    MetricInfo{Metric::kExactMatch, "exact_match", true},
    MetricInfo{Metric::kPerplexity, "perplexity", false},
    MetricInfo{Metric::kWordPerplexity, "word_perplexity", false},
    MetricInfo{Metric::kBytePerplexity, "byte_perplexity", false},
    MetricInfo{Metric::kBitsPerByte, "bits_per_byte", false},
    MetricInfo{Metric::kLoss, "loss", false},
};

const MetricInfo& info_of(Metric metric) {
  const auto found =
      std::find_if(kMetrics.begin(), kMetrics.end(), [metric](const auto& info) { return info.metric == metric; });
  if (found == kMetrics.end()) throw InternalError("info_of: unknown metric");
  return *found;
}

double length_of(Metric metric, std::string_view choice) {
  if (metric == Metric::kAccNorm) return static_cast<double>(count_code_points(choice));
  if (metric == Metric::kAccBytes) return static_cast<double>(choice.size());
  return 1.0;
}

std::int64_t first_highest(std::span<const double> scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

double weighted_mean(std::span<const MetricValue> values) {
  double sum = 0.0, weights = 0.0;
  for (const auto& [value, weight] : values) sum += value, weights += weight;
  return sum / weights;
}

std::vector<double> plain_values(std::span<const MetricValue> values) {
  std::vector<double> plain;
  for (const MetricValue& value : values) plain.push_back(value.value);
  return plain;
}

constexpr std::size_t kChunks = 100, kChunkSize = 1000;

// Writes the perplexities of one chunk of resamples.
void resample(std::span<const double> values, std::size_t chunk, double* perplexities) {
  PythonRandom random(chunk);
  const auto n = static_cast<double>(values.size());
  for (std::size_t r = 0; r < kChunkSize; ++r) {
    perplexities[r] = std::exp(-random.sum_of_choices(values) / n);
  }
}

}  // namespace

std::string_view metric_name(Metric metric) { return info_of(metric).name; }

std::optional<Metric> metric_named(std::string_view name) {
  for (const MetricInfo& info : kMetrics) {
    if (info.name == name) return info.metric;
  }
  return std::nullopt;
}

bool is_higher_better(Metric metric) { return info_of(metric).is_higher_better; }

std::int64_t pick_choice(Metric metric, std::span<const std::string> choices, std::span<const LogLikelihood> scores) {
  std::vector<double> per_length;
  // An empty choice scores minus infinity per character, as in numpy.
  for (std::size_t c = 0; c < choices.size(); ++c)
    per_length.push_back(scores[c].log_prob / length_of(metric, choices[c]));
  return first_highest(per_length);
}

std::int64_t pick_by_mutual_info(std::span<const LogLikelihood> scores, std::span<const LogLikelihood> alone) {
  std::vector<double> gains;
  for (std::size_t c = 0; c < scores.size(); ++c) gains.push_back(scores[c].log_prob - alone[c].log_prob);
  return first_highest(gains);
}

double score_of_mean(Metric metric, double mean) {
  switch (metric) {
    case Metric::kPerplexity:
    case Metric::kWordPerplexity:
    case Metric::kBytePerplexity:
      return std::exp(-mean);
    case Metric::kBitsPerByte:
      return -mean / std::log(2.0);
    default:
      return mean;
  }
}

Aggregate aggregate(Metric metric, std::span<const MetricValue> values) {
  switch (metric) {
    case Metric::kPerplexity: {
      const std::vector<double> plain = plain_values(values);
      Aggregate result{.value = score_of_mean(metric, mean(plain))};
      if (plain.size() > 1) result.standard_error = bootstrap_perplexity_error(plain);
      return result;
    }
    case Metric::kWordPerplexity:
    case Metric::kBytePerplexity:
    case Metric::kBitsPerByte:
      return {.value = score_of_mean(metric, weighted_mean(values))};
    case Metric::kLoss:
      throw InternalError("aggregate: a loss is no mean over documents");
    default: {
      const std::vector<double> plain = plain_values(values);
      return {.value = mean(plain), .standard_error = mean_standard_error(plain)};
    }
  }
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

double bootstrap_perplexity_error(std::span<const double> values) {
  std::vector<double> perplexities(kChunks * kChunkSize);
  const std::size_t num_threads = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, kChunks);
  std::vector<std::jthread> threads;
  for (std::size_t t = 0; t < num_threads; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t c = t; c < kChunks; c += num_threads) resample(values, c, &perplexities[c * kChunkSize]);
    });
  }
  threads.clear();
  return *mean_standard_error(perplexities) * std::sqrt(static_cast<double>(perplexities.size()));
}

Aggregate aggregate_tasks(std::span<const Aggregate> scores, std::span<const std::int64_t> sizes, bool weight_by_size) {
  double sum = 0.0, weights = 0.0, squares = 0.0;
  bool has_errors = true;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto size = static_cast<double>(sizes[i]);
    const double weight = weight_by_size ? size : 1.0;
    sum += scores[i].value * weight;
    weights += weight;
    has_errors = has_errors && scores[i].standard_error.has_value();
    const double error = scores[i].standard_error.value_or(0.0);
    squares += weight_by_size ? (size - 1.0) * error * error * size : error * error;
  }
  Aggregate result{.value = sum / weights};
  const auto count = static_cast<double>(scores.size());
  if (!has_errors) return result;
  result.standard_error =
      weight_by_size ? std::sqrt(squares / (weights - count) / weights) : std::sqrt(squares) / count;
  return result;
}

}  // namespace dagmoe
