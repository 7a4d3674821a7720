#include "eval/answer_filter.h"

#include <algorithm>

#include "eval/python_text.h"

namespace dagmoe {
namespace {

std::string regex_filtered(const FilterStep& step, const std::string& answer) {
  const auto matches = step.compiled.front().find_all(answer);
  const auto count = static_cast<std::int64_t>(matches.size());
  const std::int64_t index = step.group_select < 0 ? count + step.group_select : step.group_select;
  // A match that an answer does not have ends the harness with an IndexError; here it is no match.
  if (index < 0 || index >= count) return step.fallback;
  const auto& groups = matches[static_cast<std::size_t>(index)];
  // With several groups the first that holds something; a single one is taken even when it is empty.
  const auto shown = groups.size() == 1 ? groups.begin()
                                        : std::find_if(groups.begin(), groups.end(),
                                                       [](const std::string& group) { return !group.empty(); });
  return std::string(python_strip(shown == groups.end() ? step.fallback : *shown));
}

bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

std::string reduced(const ExactMatch& settings, std::string_view text) {
  std::string result(text);
  for (const Regex& regex : settings.compiled) result = regex.replace(result, [](Regex::Groups) { return ""; });
  if (settings.ignore_case) result = python_lower(result);
  std::erase_if(result, [&settings](char c) {
    return (settings.ignore_punctuation && is_punctuation(c)) || (settings.ignore_numbers && c >= '0' && c <= '9');
  });
  return result;
}

}  // namespace

std::string filtered(const FilterPipeline& pipeline, std::string answer) {
  for (const FilterStep& step : pipeline.steps) {
    switch (step.function) {
      case FilterStep::Function::kRegex:
        answer = regex_filtered(step, answer);
        break;
      case FilterStep::Function::kTakeFirst:
        break;
      case FilterStep::Function::kRemoveWhitespace:
        answer = std::string(python_strip(answer));
        break;
      case FilterStep::Function::kLowercase:
        answer = python_lower(answer);
        break;
      case FilterStep::Function::kUppercase:
        answer = python_upper(answer);
        break;
    }
  }
  return answer;
}

bool matches_exactly(const ExactMatch& settings, std::string_view answer, std::string_view target) {
  return reduced(settings, answer) == reduced(settings, target);
}

}  // namespace dagmoe
