#include "eval/metrics.h"

#include <cmath>

#include "tests/support/catch.h"

namespace dagmoe {
namespace {

std::int64_t pick(Metric metric, const std::vector<std::string>& choices, const std::vector<double>& log_probs) {
  std::vector<LogLikelihood> scores;
  for (const double log_prob : log_probs) scores.push_back({.log_prob = log_prob});
  return pick_choice(metric, choices, scores);
}

TEST_CASE("metrics: acc takes the highest log-likelihood whatever the lengths", "[eval]") {
  CHECK(pick(Metric::kAcc, {"a", "a long one"}, {-2.0, -3.0}) == 0);
}

TEST_CASE("metrics: acc_norm divides by code points and acc_bytes by bytes", "[eval]") {
  // Two code points, four bytes: -4 / 2 loses against -1.5, -4 / 4 wins.
  const std::vector<std::string> choices = {"éé", "ab"};
  CHECK(pick(Metric::kAccNorm, choices, {-4.0, -3.0}) == 1);
  CHECK(pick(Metric::kAccBytes, choices, {-4.0, -3.0}) == 0);
}

TEST_CASE("metrics: of equal scores the lowest index wins", "[eval]") {
  CHECK(pick(Metric::kAcc, {"a", "b", "c"}, {-2.0, -1.0, -1.0}) == 1);
  CHECK(pick(Metric::kAccNorm, {"aa", "b"}, {-2.0, -1.0}) == 0);
}

TEST_CASE("metrics: an empty choice never wins by length", "[eval]") {
  CHECK(pick(Metric::kAccNorm, {"", "b"}, {-0.5, -9.0}) == 1);
}

TEST_CASE("metrics: the standard error is the sample deviation over root n", "[eval]") {
  const std::vector<double> values = {1.0, 0.0, 0.0, 1.0, 1.0};
  CHECK(mean(values) == 0.6);
  CHECK(*mean_standard_error(values) == Approx(std::sqrt(0.3 / 5.0)).epsilon(1e-15));
  CHECK_FALSE(mean_standard_error(std::vector<double>{1.0}).has_value());
}

TEST_CASE("metrics: names are found and others are not", "[eval]") {
  for (const char* name : {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "perplexity", "loss"})
    CHECK(metric_name(*metric_named(name)) == name);
  CHECK_FALSE(metric_named("accuracy").has_value());
}

// The next are values of lm-evaluation-harness's functions: make_metric_values.py.

TEST_CASE("metrics: a perplexity's error is the harness's bootstrap, draw for draw", "[eval]") {
  std::vector<MetricValue> values;
  for (const double score : {-1.5, -0.25, -3.75, -2.0, -0.125, -7.5}) values.push_back({score});
  const Aggregate perplexity = aggregate(Metric::kPerplexity, values);
  CHECK(perplexity.value == Approx(12.438958144147808).epsilon(1e-14));
  CHECK(*perplexity.standard_error == Approx(39.20305490216154).epsilon(1e-12));
  CHECK_FALSE(aggregate(Metric::kPerplexity, std::vector<MetricValue>{{-1.0}}).standard_error.has_value());
}

TEST_CASE("metrics: perplexities of words and bytes divide by all of them together", "[eval]") {
  const std::vector<MetricValue> values = {{-120.5, 30}, {-64.25, 17}, {-9.0, 4}};
  CHECK(aggregate(Metric::kWordPerplexity, values).value == Approx(44.657381278293855).epsilon(1e-14));
  CHECK(aggregate(Metric::kBitsPerByte, values).value == Approx(5.480826748475229).epsilon(1e-14));
  CHECK_FALSE(aggregate(Metric::kBytePerplexity, values).standard_error.has_value());
}

TEST_CASE("metrics: scores of several tasks are one, weighted by documents or not", "[eval]") {
  const std::vector<Aggregate> scores = {{0.5, 0.05}, {0.25, 0.0125}, {0.75, 0.1}};
  const std::vector<std::int64_t> sizes = {100, 400, 25};
  const Aggregate weighted = aggregate_tasks(scores, sizes, true), plain = aggregate_tasks(scores, sizes, false);
  CHECK(weighted.value == Approx(0.32142857142857145).epsilon(1e-15));
  CHECK(*weighted.standard_error == Approx(0.01425489285976397).epsilon(1e-14));
  CHECK(plain.value == 0.5);
  CHECK(*plain.standard_error == Approx(0.037500000000000006).epsilon(1e-14));
  const std::vector<Aggregate> without = {{0.5, 0.05}, {0.25, {}}, {0.75, 0.1}};
  CHECK_FALSE(aggregate_tasks(without, sizes, true).standard_error.has_value());
}

TEST_CASE("metrics: acc_mutual_info takes what gains most from its context", "[eval]") {
  const std::vector<LogLikelihood> scores = {{.log_prob = -2.0}, {.log_prob = -3.0}};
  const std::vector<LogLikelihood> alone = {{.log_prob = -2.5}, {.log_prob = -9.0}};
  CHECK(pick_by_mutual_info(scores, alone) == 1);
}

}  // namespace
}  // namespace dagmoe
