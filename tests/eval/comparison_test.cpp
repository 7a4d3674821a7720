#include "eval/comparison.h"

#include <fstream>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

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

// Documents with these values, 0.0 and 1.0 for accuracies.
DocumentScores documents_with(const std::string& metric, const std::vector<double>& values, double weight = 1.0) {
  DocumentScores scores;
  std::int64_t id = 0;
  for (const double value : values) scores[score_key("t", metric, "none")].push_back({id++, "h", value, weight});
  return scores;
}

TEST_CASE("comparison: McNemar's p is exact for few changes and chi-square for many", "[eval]") {
  // scipy.stats.binomtest(k, n, 0.5).pvalue, and chi2.sf((abs(b - c) - 1)^2 / (b + c), 1).
  CHECK(mcnemar_p(0, 0) == 1.0);
  CHECK(mcnemar_p(1, 8) == Approx(0.0390625).epsilon(1e-12));
  CHECK(mcnemar_p(5, 5) == 1.0);
  CHECK(mcnemar_p(12, 12) == 1.0);
  CHECK(mcnemar_p(10, 30) == Approx(0.002663119259138554).epsilon(1e-9));
  CHECK(mcnemar_p(30, 10) == mcnemar_p(10, 30));
}

TEST_CASE("comparison: accuracies on the same documents are tested pair by pair", "[eval]") {
  const std::vector<double> before = {1, 1, 0, 0, 0, 0, 0, 0, 0, 0}, after = {1, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const EarlierRun run{.name = "b", .scores = {{"t", "acc", 0.2, 0.13}}, .documents = documents_with("acc", before)};
  const std::vector<Score> scores = {{"t", "acc", 0.9, 0.1}};
  const auto changes = compare_runs(run, scores, documents_with("acc", after));
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].test == PairedTest::kMcNemar);
  CHECK(*changes[0].p_value == Approx(0.0390625));
  // Differences: eight of +1, one of -1, one of 0; sample deviation over root 10.
  CHECK(*changes[0].standard_error == Approx(0.21343747).epsilon(1e-6));
  CHECK_THAT(comparison_table(changes), Catch::Contains("|McNemar|0.0391|") && !Catch::Contains("unpaired"));
}

TEST_CASE("comparison: other scores are tested by resampling documents", "[eval]") {
  std::vector<double> before, after;
  for (int i = 0; i < 40; ++i)
    before.push_back(2.0 + 0.1 * (i % 7)), after.push_back(1.9 + 0.1 * (i % 7) + 0.01 * (i % 3));
  const EarlierRun run{
      .name = "b", .scores = {{"t", "loss", 2.3, 0.1, false}}, .documents = documents_with("loss", before, 2.0)};
  const std::vector<Score> scores = {{"t", "loss", 2.2, 0.1, false}};
  const auto changes = compare_runs(run, scores, documents_with("loss", after, 2.0));
  CHECK(changes[0].test == PairedTest::kBootstrap);
  // Each document falls by 0.09 to 0.1 a document of two tokens: the error is far below that of either run.
  CHECK(*changes[0].standard_error < 0.002);
  CHECK(*changes[0].p_value < 0.001);
  CHECK(compare_runs(run, scores, documents_with("loss", after, 2.0))[0].standard_error == changes[0].standard_error);
}

TEST_CASE("comparison: other documents are not paired, and why is said", "[eval]") {
  const EarlierRun run{.name = "b", .scores = {{"t", "acc", 0.5, 0.03}}, .documents = documents_with("acc", {1, 0, 1})};
  const std::vector<Score> scores = {{"t", "acc", 0.5, 0.04}};
  const auto changes = compare_runs(run, scores, documents_with("acc", {1, 0}));
  CHECK(changes[0].test == PairedTest::kNone);
  CHECK(*changes[0].standard_error == Approx(0.05));
  CHECK_THAT(comparison_table(changes),
             Catch::Contains("unpaired: t: the two runs asked other documents; the standard"));
}

TEST_CASE("comparison: a run is read from its folder, samples and all", "[eval]") {
  const TextFile results(
      "results.json",
      R"({"results":{"gsm8k":{"alias":"gsm8k","exact_match,strict-match":0.5,"exact_match_stderr,strict-match":0.1}}})");
  const auto folder = results.path().parent_path();
  // The second is lm-evaluation-harness's name for a later run, and wins.
  std::ofstream(folder / "samples_gsm8k.jsonl")
      << R"({"doc_id":0,"doc_hash":"x","filter":"strict-match","metrics":["exact_match"],"exact_match":1.0})"
      << "\n";
  std::ofstream(folder / "samples_gsm8k_2026-01-31T12-00-00.123456.jsonl")
      << R"({"doc_id":3,"doc_hash":"y","filter":"strict-match","metrics":["exact_match"],"exact_match":0.0})"
      << "\n";
  std::ofstream(folder / "samples_wikitext.jsonl")
      << R"({"doc_id":0,"doc_hash":"x","filter":"none","metrics":["word_perplexity"],"word_perplexity":[-7.5,8]})"
      << "\n";
  std::ofstream(folder / "samples_piqa.partial.jsonl") << "{";
  const EarlierRun run = read_earlier_run(folder);
  REQUIRE(run.scores.size() == 1);
  CHECK(run.scores[0].filter == "strict-match");
  CHECK(run.scores[0].shown_metric() == "exact_match (strict-match)");
  const auto& documents = run.documents.at(score_key("gsm8k", "exact_match", "strict-match"));
  REQUIRE(documents.size() == 1);
  CHECK(documents[0].doc_id == 3);
  CHECK(run.documents.at(score_key("wikitext", "word_perplexity", "none"))[0].weight == 8.0);
  CHECK(read_earlier_run(results.path()).documents.size() == 2);
  std::ofstream(folder / "samples_piqa.jsonl") << "{\n";
  CHECK_THROWS_WITH(read_earlier_run(folder), Catch::EndsWith("samples_piqa.jsonl:1: is no line of a samples file"));
}

}  // namespace
}  // namespace dagmoe
