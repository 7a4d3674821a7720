// Expected values are lm-evaluation-harness's own: make_metric_values.py.
#include "eval/answer_filter.h"

#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Function = FilterStep::Function;

FilterPipeline regex_pipeline(const std::string& pattern, std::int64_t group_select) {
  FilterStep step{.function = Function::kRegex, .regex_pattern = pattern, .group_select = group_select};
  step.compiled = {Regex(pattern)};
  return {.name = "regex", .steps = {step, {.function = Function::kTakeFirst}}};
}

TEST_CASE("filter: regular expressions find what lm-evaluation-harness finds", "[eval]") {
  const FilterPipeline strict = regex_pipeline(R"(#### (\-?[0-9\.\,]+))", 0);
  const FilterPipeline flexible = regex_pipeline("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1);
  const FilterPipeline bbh = regex_pipeline("(?<=the answer is )(.*)(?=.)", 0);
  struct Case {
    const char *text, *strict, *flexible, *bbh;
  };
  const Case golden = GENERATE(values<Case>({
      {"It is 5 + 6 = 11.\n#### 11", "11", "11", "[invalid]"},
      {"#### -1,250.5 and #### 7", "-1,250.5", "7", "[invalid]"},
      {"no number", "[invalid]", "[invalid]", "[invalid]"},
      {"so $1,000. Then 3", "[invalid]", "3", "[invalid]"},
      {"so the answer is (B). Or the answer is no.", "[invalid]", "[invalid]", "(B). Or the answer is no"},
      {"the answer is", "[invalid]", "[invalid]", "[invalid]"},
      {"the answer is Q\nthe answer is valid. ", "[invalid]", "[invalid]", ""},
      {"costs $ 5.", "[invalid]", "5.", "[invalid]"},
      {"é 12 ½", "[invalid]", "12", "[invalid]"},
      {"٣ the answer is  x y . ", "[invalid]", "[invalid]", "x y ."},
  }));
  CAPTURE(golden.text);
  CHECK(filtered(strict, golden.text) == golden.strict);
  CHECK(filtered(flexible, golden.text) == golden.flexible);
  CHECK(filtered(bbh, golden.text) == golden.bbh);
}

TEST_CASE("filter: a match that an answer does not have is no match", "[eval]") {
  CHECK(filtered(regex_pipeline("[0-9]", 1), "a 1") == "[invalid]");
  CHECK(filtered(regex_pipeline("[0-9]", 1), "a 1 2") == "2");
  CHECK(filtered(regex_pipeline("[0-9]", -2), "a 1") == "[invalid]");
}

TEST_CASE("filter: steps follow one another", "[eval]") {
  const FilterPipeline pipeline = {
      .name = "x", .steps = {{.function = Function::kRemoveWhitespace}, {.function = Function::kUppercase}}};
  CHECK(filtered(pipeline, " straße\n") == "STRASSE");
  CHECK(filtered({.name = "x", .steps = {{.function = Function::kLowercase}}}, "ÀBΩ") == "àbω");
  CHECK(filtered({}, " as it is ") == " as it is ");
}

ExactMatch settings_with(const std::vector<std::string>& patterns, ExactMatch settings) {
  settings.regexes_to_ignore = patterns;
  for (const std::string& pattern : patterns) settings.compiled.emplace_back(pattern);
  return settings;
}

TEST_CASE("exact_match: GSM8K's settings reduce both texts", "[eval]") {
  const ExactMatch settings = settings_with({",", R"(\$)", "(?s).*#### ", R"(\.$)"}, {.ignore_case = true});
  CHECK(matches_exactly(settings, "1,250.", "a\nb #### 1250"));
  CHECK(matches_exactly(settings, "$12", "x #### 12"));
  CHECK_FALSE(matches_exactly(settings, "12.0", "#### 12"));
  CHECK(matches_exactly(settings, "ABC", "abc"));
  CHECK_FALSE(matches_exactly(settings, "[invalid]", "#### 3"));
  CHECK_FALSE(matches_exactly(settings, "12.\n", "12"));
}

TEST_CASE("exact_match: punctuation and digits can be ignored", "[eval]") {
  const ExactMatch settings = {.ignore_punctuation = true, .ignore_numbers = true};
  CHECK(matches_exactly(settings, "a, b! 3", "a b "));
  CHECK(matches_exactly(settings, "a_b", "ab"));
  CHECK_FALSE(matches_exactly(settings, "A", "a"));
}

}  // namespace
}  // namespace dagmoe
