// The page that compares runs with the first of them.
#include <algorithm>
#include <cmath>
#include <optional>

#include "base/text.h"
#include "finetune/report_page.h"

namespace dagmoe {
namespace {

std::string letter(std::size_t index) {
  return index < 26 ? std::string(1, static_cast<char>('A' + index)) : "R" + std::to_string(index + 1);
}

const std::string kNone = "\xE2\x80\x93";

std::string end_text(const Series& series, bool first) {
  return series.empty() ? kNone : fixed(first ? series.value.front() : series.value.back(), 4);
}

std::string overview(const std::vector<RunRecord>& runs) {
  HtmlTable table{{""}, {}, {false}};
  for (std::size_t i = 0; i < runs.size(); ++i) table.header.push_back(letter(i) + " " + escape_html(runs[i].name));
  table.right.resize(table.header.size(), true);
  const auto row = [&](const char* name, const auto& value_of) {
    std::vector<std::string> cells{name};
    for (const RunRecord& run : runs) cells.push_back(value_of(run));
    table.rows.push_back(std::move(cells));
  };
  row("Folder", [](const RunRecord& run) { return "<code>" + escape_html(run.folder.string()) + "</code>"; });
  row("Steps", [](const RunRecord& run) { return with_commas(run.num_steps); });
  row("Tokens", [](const RunRecord& run) { return number_text(sum(run.of("tokens").value)); });
  row("Time in steps", [](const RunRecord& run) { return human_seconds(sum(run.of("seconds").value)); });
  row("Tokens per second, median",
      [](const RunRecord& run) { return number_text(median(run.of("tokens_per_second").value)); });
  row("Peak memory", [](const RunRecord& run) {
    const auto& bytes = run.of("peak_rss_bytes").value;
    return bytes.empty() ? kNone : human_bytes(static_cast<std::int64_t>(*std::ranges::max_element(bytes)));
  });
  row("Training loss, last smoothed", [](const RunRecord& run) {
    const auto& loss = run.of("loss").value;
    return loss.empty() ? kNone : fixed(smoothed(loss, smoothing_steps(loss.size())).back(), 4);
  });
  row("Validation loss before", [](const RunRecord& run) { return end_text(run.of("valid_loss"), true); });
  row("Validation loss after", [](const RunRecord& run) { return end_text(run.of("valid_loss"), false); });
  row("Validation loss after, minus A's", [&](const RunRecord& run) {
    const Series &valid = run.of("valid_loss"), &first = runs.front().of("valid_loss");
    if (&run == &runs.front()) return std::string();
    return valid.empty() || first.empty() ? kNone : signed_text(valid.value.back() - first.value.back(), 4);
  });
  return html_table(table);
}

const ScoreSeries* find_score(const RunRecord& run, const ScoreSeries& like) {
  const auto found = std::ranges::find_if(
      run.scores, [&](const ScoreSeries& score) { return score.task == like.task && score.metric == like.metric; });
  return found == run.scores.end() ? nullptr : &*found;
}

std::vector<ScoreSeries> all_scores(const std::vector<RunRecord>& runs) {
  std::vector<ScoreSeries> all;
  for (const RunRecord& run : runs) {
    for (const ScoreSeries& score : run.scores) {
      const bool is_known = std::ranges::any_of(
          all, [&](const ScoreSeries& known) { return known.task == score.task && known.metric == score.metric; });
      if (!is_known) all.push_back(score);
    }
  }
  return all;
}

std::string score_comparison(const std::vector<RunRecord>& runs) {
  HtmlTable table{{"Task", "Metric"}, {}, {false, false}};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    table.header.push_back(letter(i));
    if (i > 0) table.header.push_back(letter(i) + " \xE2\x88\x92 A");
  }
  table.right.resize(table.header.size(), true);
  for (const ScoreSeries& like : all_scores(runs)) {
    std::vector<std::string> row{escape_html(like.task), escape_html(like.metric)};
    const ScoreSeries* base = find_score(runs.front(), like);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const ScoreSeries* score = find_score(runs[i], like);
      const auto* at = score == nullptr ? nullptr : &score->at.back();
      row.push_back(at == nullptr ? kNone
                                  : fixed(at->value, 4) + (at->error ? " \xC2\xB1 " + fixed(*at->error, 4) : ""));
      if (i > 0)
        row.push_back(at == nullptr || base == nullptr ? kNone : signed_text(at->value - base->at.back().value, 4));
    }
    table.rows.push_back(std::move(row));
  }
  if (table.rows.empty()) return "<p class=\"missing\">No task scores: no metrics.jsonl has a line with scores.</p>\n";
  return html_table(table) + "<p class=\"note\">The last scores of each run; \xC2\xB1 is the standard error.</p>\n";
}

std::string recipe_comparison(const std::vector<RunRecord>& runs) {
  std::vector<std::string> keys;
  for (const RunRecord& run : runs) {
    if (!run.recipe_text) return html_missing(run.folder.string() + "/recipe.yaml", "The difference of recipes is");
    for (const auto& [key, value] : run.recipe) {
      if (std::ranges::find(keys, key) == keys.end()) keys.push_back(key);
    }
  }
  HtmlTable table{{"Key"}, {}, {}};
  for (std::size_t i = 0; i < runs.size(); ++i) table.header.push_back(letter(i));
  for (const std::string& key : keys) {
    std::vector<std::optional<std::string>> values;
    for (const RunRecord& run : runs) {
      const auto found = std::ranges::find(run.recipe, key, &std::pair<std::string, std::string>::first);
      values.push_back(found == run.recipe.end() ? std::nullopt : std::optional(found->second));
    }
    if (std::ranges::all_of(values, [&](const auto& value) { return value == values.front(); })) continue;
    std::vector<std::string> row{"<code>" + escape_html(key) + "</code>"};
    for (const auto& value : values) row.push_back(value ? "<code>" + escape_html(*value) + "</code>" : kNone);
    table.rows.push_back(std::move(row));
  }
  if (table.rows.empty()) return "<p>The recipes are equal.</p>\n";
  return html_table(table) + "<p class=\"note\">Only keys that differ.</p>\n";
}

// Tokens trained on until each step of `series`.
std::vector<double> tokens_until(const RunRecord& run, const Series& series) {
  const Series& tokens = run.of("tokens");
  std::vector<double> result;
  double total = 0;
  std::size_t next = 0;
  for (const double step : series.step) {
    for (; next < tokens.step.size() && tokens.step[next] <= step; ++next) total += tokens.value[next];
    result.push_back(total);
  }
  return result;
}

Chart overlay(const std::vector<RunRecord>& runs, const MetricChart& metric, bool by_tokens, CurveKind kind) {
  Chart chart{metric.title, by_tokens ? "tokens" : "step", metric.unit, {}, false, metric.from_zero};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Series& series = runs[i].of(metric.key);
    if (series.empty() || (by_tokens && runs[i].of("tokens").empty())) continue;
    const bool smooth = metric.smooth && series.value.size() >= 8;
    chart.curves.push_back({letter(i), by_tokens ? tokens_until(runs[i], series) : series.step,
                            smooth ? smoothed(series.value, smoothing_steps(series.value.size())) : series.value, kind,
                            static_cast<int>(i)});
  }
  return chart;
}

std::string curve_comparison(const std::vector<RunRecord>& runs) {
  constexpr MetricChart kLoss{"loss", "Training loss, smoothed", "nats per supervised token", true, false};
  constexpr MetricChart kValid{"valid_loss", "Validation loss", "nats per supervised token", false, false};
  std::string out = "<div class=\"charts\">\n";
  const auto add = [&](const Chart& chart) { out += chart.curves.empty() ? "" : chart_svg(chart) + "\n"; };
  for (const bool by_tokens : {false, true}) add(overlay(runs, kLoss, by_tokens, CurveKind::kLine));
  for (const bool by_tokens : {false, true}) add(overlay(runs, kValid, by_tokens, CurveKind::kPoints));
  for (const MetricChart& metric : metric_charts()) add(overlay(runs, metric, false, CurveKind::kLine));
  return out +
         "</div>\n<p class=\"note\">Smoothed: averaged over neighbouring steps with weights that fall by e within a "
         "sixtieth of the run, at least 1.5 steps.</p>\n";
}

}  // namespace

std::string comparison_page(const std::vector<RunRecord>& runs) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < runs.size(); ++i) names.push_back(letter(i) + " " + runs[i].name);
  const std::string title = str(runs.size(), " runs compared");
  std::string body = str("<header><h1>", title, "</h1>\n<p class=\"sub\">", escape_html(join(names, " \xC2\xB7 ")),
                         "</p></header>\n<main>\n");
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].last_line_torn)
      body += str("<p class=\"missing\">The last line of ", letter(i),
                  "'s metrics.jsonl is not finished and was left out: the run was killed, or still writes.</p>\n");
  }
  body += html_section("Overview", overview(runs));
  body += html_section("Scores", score_comparison(runs));
  body += html_section("What the recipes do differently", recipe_comparison(runs));
  body += html_section("Curves", curve_comparison(runs));
  return html_page(title + " \xE2\x80\x93 dagmoe", body + "</main>\n");
}

}  // namespace dagmoe
