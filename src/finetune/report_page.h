#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "finetune/report_data.h"
#include "finetune/report_svg.h"

namespace dagmoe {

/// The style sheet, embedded at build time.
struct ReportText {
  std::string_view name, text;
};
std::span<const ReportText> report_texts();

/// A whole page around `body`. Its Content-Security-Policy forbids every request, scripts too.
std::string html_page(const std::string& title, const std::string& body);
/// An <h2> with what follows it; "" when there is no content.
std::string html_section(const std::string& title, const std::string& content);
/// The small line that says which file is missing and what it would have shown.
std::string html_missing(const std::string& file, const std::string& part);

/// A table; columns in `right` are numbers. The first column is the header of its row. Cells are HTML already.
struct HtmlTable {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::vector<bool> right;
  std::vector<std::string> row_classes = {};
  std::string caption = {};
};
std::string html_table(const HtmlTable& table);

/// Each value averaged with its neighbours on both sides, weighted by exp(-distance / steps): no lag behind the values.
std::vector<double> smoothed(const std::vector<double>& values, double steps);
/// What the pages smooth over: a sixtieth of the run, at least 1.5 steps. More would round off the start of a run.
double smoothing_steps(std::size_t num_values);

/// A metric of the step lines as a chart: its key in metrics.jsonl, and how it reads.
struct MetricChart {
  const char *key, *title, *unit;
  bool smooth = false, from_zero = false;
};
std::span<const MetricChart> metric_charts();

/// "-0.1234", "+0.0150", "±0".
std::string signed_text(double value, int decimals);
double median(std::vector<double> values);
double sum(const std::vector<double>& values);

/// Parts of the page of one run.
std::string score_section(const RunRecord& run);
std::string curve_section(const RunRecord& run);
std::string expert_section(const RunRecord& run);
std::string edge_section(const RunRecord& run);
std::string sample_section(const RunRecord& run);

std::string run_page(const RunRecord& run);
std::string comparison_page(const std::vector<RunRecord>& runs);

}  // namespace dagmoe
