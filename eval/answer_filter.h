#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/regex.h"

namespace dagmoe {

/// One step between what a model wrote and what is compared, under lm-evaluation-harness's names.
struct FilterStep {
  enum class Function {
    kRegex,             ///< one match of a pattern
    kTakeFirst,         ///< of several answers to one prompt the first: there is only one here
    kRemoveWhitespace,  ///< at both ends
    kLowercase,
    kUppercase
  };
  Function function = Function::kTakeFirst;
  // regex
  std::string regex_pattern = R"(#### (\-?[0-9\.\,]+))";
  std::int64_t group_select = 0;       ///< which match: 0 is the first, -1 the last
  std::string fallback = "[invalid]";  ///< when none matches
  std::vector<Regex> compiled = {};    ///< of regex_pattern; one, or none for the other functions
};

/// A named row of the results: steps that an answer goes through one after another.
struct FilterPipeline {
  std::string name = "none";
  std::vector<FilterStep> steps = {};
};

/// Throws InputError with the reason only when a pattern takes too long.
std::string filtered(const FilterPipeline& pipeline, std::string answer);

/// How exact_match compares: both texts lose every match of each pattern, in order, then their case and so on.
struct ExactMatch {
  std::vector<std::string> regexes_to_ignore = {};
  bool ignore_case = false, ignore_punctuation = false, ignore_numbers = false;
  std::vector<Regex> compiled = {};  ///< of regexes_to_ignore
};
bool matches_exactly(const ExactMatch& settings, std::string_view answer, std::string_view target);

}  // namespace dagmoe
