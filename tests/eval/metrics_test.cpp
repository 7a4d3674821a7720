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

}  // namespace
}  // namespace dagmoe
