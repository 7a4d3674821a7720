#include "eval/comparison.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "eval/markdown_table.h"
#include "eval/metrics.h"
#include "eval/python_random.h"

namespace dagmoe {
namespace {

constexpr int kDecimals = 4;
constexpr std::int64_t kFewChanges = 25;
constexpr std::size_t kResamples = 10'000;
constexpr std::uint64_t kSeed = 1234;

struct Pair {
  DocumentScore before, after;
};

// The documents of both, or why there are none.
std::vector<Pair> paired(const std::vector<DocumentScore>& before, const std::vector<DocumentScore>& after,
                         std::string& why) {
  std::map<std::int64_t, const DocumentScore*> known;
  for (const DocumentScore& score : before) known.emplace(score.doc_id, &score);
  std::vector<Pair> pairs;
  for (const DocumentScore& score : after) {
    const auto found = known.find(score.doc_id);
    if (found == known.end() || found->second->doc_hash != score.doc_hash) {
      why = "the two runs asked other documents";
      return {};
    }
    pairs.push_back({*found->second, score});
  }
  if (before.size() != after.size()) why = "the two runs asked other documents";
  return before.size() == after.size() ? pairs : std::vector<Pair>();
}

bool is_accuracy(const std::vector<Pair>& pairs) {
  const auto is_flag = [](const DocumentScore& score) { return score.value == 0.0 || score.value == 1.0; };
  return std::all_of(pairs.begin(), pairs.end(),
                     [&](const Pair& pair) { return is_flag(pair.before) && is_flag(pair.after); });
}

void test_accuracy(const std::vector<Pair>& pairs, ScoreChange& change) {
  std::int64_t only_before = 0, only_after = 0;
  std::vector<double> differences;
  for (const auto& [before, after] : pairs) {
    only_before += before.value > after.value;
    only_after += after.value > before.value;
    differences.push_back(after.value - before.value);
  }
  change.test = PairedTest::kMcNemar;
  change.standard_error = mean_standard_error(differences);
  change.p_value = mcnemar_p(only_before, only_after);
}

void test_by_bootstrap(Metric metric, const std::vector<Pair>& pairs, ScoreChange& change) {
  PythonRandom random(kSeed);
  std::vector<double> differences;
  std::size_t below = 0, above = 0;
  for (std::size_t r = 0; r < kResamples; ++r) {
    double before = 0.0, after = 0.0, before_weight = 0.0, after_weight = 0.0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const Pair& pair = pairs[random.below(pairs.size())];
      before += pair.before.value, before_weight += pair.before.weight;
      after += pair.after.value, after_weight += pair.after.weight;
    }
    const double difference =
        score_of_mean(metric, after / after_weight) - score_of_mean(metric, before / before_weight);
    below += difference <= 0.0;
    above += difference >= 0.0;
    differences.push_back(difference);
  }
  change.test = PairedTest::kBootstrap;
  change.standard_error = *mean_standard_error(differences) * std::sqrt(static_cast<double>(kResamples));
  change.p_value = std::min(1.0, 2.0 * static_cast<double>(std::min(below, above) + 1) / (kResamples + 1.0));
}

void test_change(const DocumentScores& before, const DocumentScores& after, ScoreChange& change) {
  const std::string key = score_key(change.after.task, change.after.metric, change.after.filter);
  const auto earlier = before.find(key), later = after.find(key);
  const auto metric = metric_named(change.after.metric);
  std::vector<Pair> pairs;
  if (earlier == before.end() || later == after.end()) {
    change.why_unpaired =
        earlier == before.end() ? "the earlier run kept no samples (--log-samples)" : "it has no documents of its own";
  } else {
    pairs = paired(earlier->second, later->second, change.why_unpaired);
  }
  if (pairs.size() > 1 && is_accuracy(pairs)) return test_accuracy(pairs, change);
  if (pairs.size() > 1 && metric) return test_by_bootstrap(*metric, pairs, change);
  if (change.why_unpaired.empty()) change.why_unpaired = "of one document nothing can be said";
  if (change.before.standard_error && change.after.standard_error)
    change.standard_error = std::hypot(*change.before.standard_error, *change.after.standard_error);
}

std::string_view test_name(PairedTest test) {
  return test == PairedTest::kMcNemar ? "McNemar" : test == PairedTest::kBootstrap ? "bootstrap" : "unpaired";
}

std::string number_text(const std::optional<double>& value) { return value ? fixed(*value, kDecimals) : "N/A"; }

}  // namespace

std::string score_key(const std::string& task, const std::string& metric, const std::string& filter) {
  return str(task, "\n", metric, "\n", filter);
}

double mcnemar_p(std::int64_t only_before, std::int64_t only_after) {
  const std::int64_t changed = only_before + only_after;
  if (changed == 0) return 1.0;
  if (changed >= kFewChanges) {
    const double gap = std::max(0.0, static_cast<double>(std::abs(only_before - only_after)) - 1.0);
    return std::erfc(std::sqrt(gap * gap / static_cast<double>(changed) / 2.0));
  }
  // Twice the binomial tail of the smaller side under p = 1/2.
  double term = std::ldexp(1.0, -static_cast<int>(changed)), tail = 0.0;
  for (std::int64_t k = 0; k <= std::min(only_before, only_after); ++k) {
    tail += term;
    term *= static_cast<double>(changed - k) / static_cast<double>(k + 1);
  }
  return std::min(1.0, 2.0 * tail);
}

std::vector<ScoreChange> compare_runs(const EarlierRun& before, std::span<const Score> after,
                                      const DocumentScores& documents) {
  std::map<std::string, const Score*> known;
  for (const Score& score : before.scores) known.emplace(score_key(score.task, score.metric, score.filter), &score);
  std::vector<ScoreChange> changes;
  for (const Score& score : after) {
    const auto found = known.find(score_key(score.task, score.metric, score.filter));
    if (found == known.end()) continue;
    changes.push_back({*found->second, score});
    test_change(before.documents, documents, changes.back());
  }
  return changes;
}

std::string comparison_table(std::span<const ScoreChange> changes) {
  std::vector<std::vector<std::string>> rows;
  std::string last_task;
  std::map<std::string, std::vector<std::string>> unpaired;
  for (const ScoreChange& change : changes) {
    const bool is_new_task = change.after.task != std::exchange(last_task, change.after.task);
    const double difference = change.difference();
    rows.push_back({is_new_task ? change.after.task : "", change.after.shown_metric(),
                    change.after.higher_is_better ? "↑" : "↓", fixed(change.before.value, kDecimals),
                    fixed(change.after.value, kDecimals), (difference >= 0.0 ? "+" : "") + fixed(difference, kDecimals),
                    "±", number_text(change.standard_error), std::string(test_name(change.test)),
                    number_text(change.p_value)});
    std::vector<std::string>& tasks = unpaired[change.why_unpaired];
    if (change.test == PairedTest::kNone && (tasks.empty() || tasks.back() != change.after.task))
      tasks.push_back(change.after.task);
  }
  std::string text = markdown_table({{"Tasks"},
                                     {"Metric"},
                                     {""},
                                     {"Before", true},
                                     {"After", true},
                                     {"Difference", true},
                                     {""},
                                     {"Stderr", true},
                                     {"Test"},
                                     {"p", true}},
                                    rows);
  for (const auto& [why, tasks] : unpaired) {
    if (!tasks.empty())
      text += str("unpaired: ", join(tasks, ", "), ": ", why, "; the standard error takes the runs as independent\n");
  }
  return text;
}

}  // namespace dagmoe
