#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/language_model.h"

namespace dagmoe {

/// How a multiple-choice document is judged (contracts.md 4.2): the choice with the highest log-likelihood, as it is,
/// per Unicode code point, or per UTF-8 byte of the choice without its delimiter.
enum class ChoiceMetric { kAcc, kAccNorm, kAccBytes };
std::string_view metric_name(ChoiceMetric metric);
/// nullopt for an unknown name.
std::optional<ChoiceMetric> choice_metric_named(std::string_view name);
const std::vector<std::string>& choice_metric_names();

/// Index of the choice the metric picks; the lowest of equals. `choices` and `scores` have one length, at least 1.
std::int64_t pick_choice(ChoiceMetric metric, std::span<const std::string> choices,
                         std::span<const LogLikelihood> scores);

/// Sum from left to right, then one division.
double mean(std::span<const double> values);
/// Standard error of the mean: sample deviation (n - 1) / sqrt(n); nullopt for fewer than two values.
std::optional<double> mean_standard_error(std::span<const double> values);

}  // namespace dagmoe
