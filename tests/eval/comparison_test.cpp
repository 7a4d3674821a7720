#include "eval/comparison.h"

#include "base/error.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

TEST_CASE("results: a file that is no results document is refused", "[eval]") {
  CHECK_THROWS_WITH(read_scores(Json::array(), "a.json"),
                    "a.json: no object 'results'; is this a results.json of an evaluation?");
  CHECK_THROWS_WITH(read_scores(Json({{"results", {{"piqa", 3}}}}), "a.json"),
                    "a.json: 'results.piqa': found number, expected object");
}

TEST_CASE("comparison: scores that both runs have stand side by side with their difference", "[eval]") {
  const std::vector<Score> before = {
      {"arc_easy", "acc", 0.4, 0.03}, {"arc_easy", "acc_norm", 0.5, 0.03}, {"gone", "acc", 1.0, {}}};
  const std::vector<Score> after = {{"arc_easy", "acc", 0.45, 0.04},
                                    {"arc_easy", "acc_norm", 0.5, {}},
                                    {"held_out", "loss", 2.0, 0.1, false},
                                    {"new", "acc", 1.0, {}}};
  std::vector<Score> before_all = before;
  before_all.push_back({"held_out", "loss", 3.0, 0.1, false});
  const auto changes = compare_runs({.name = "b", .scores = before_all, .documents = {}}, after, {});
  REQUIRE(changes.size() == 3);
  CHECK(changes[0].difference() == Approx(0.05));
  CHECK(*changes[0].standard_error == Approx(0.05));
  CHECK_FALSE(changes[1].standard_error.has_value());
  CHECK(comparison_table(changes) ==
        "| Tasks  | Metric |   |Before|After |Difference|   |Stderr|  Test  | p |\n"
        "|--------|--------|---|-----:|-----:|---------:|---|-----:|--------|--:|\n"
        "|arc_easy|acc     |↑  |0.4000|0.4500|   +0.0500|±  |0.0500|unpaired|N/A|\n"
        "|        |acc_norm|↑  |0.5000|0.5000|   +0.0000|±  |   N/A|unpaired|N/A|\n"
        "|held_out|loss    |↓  |3.0000|2.0000|   -1.0000|±  |0.1414|unpaired|N/A|\n"
        "unpaired: arc_easy, held_out: the earlier run kept no samples (--log-samples); the standard error takes the "
        "runs as independent\n");
}

}  // namespace
}  // namespace dagmoe
