#include "finetune/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/atomic_file.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/text.h"
#include "finetune/report_page.h"

namespace dagmoe {

std::string html_page(const std::string& title, const std::string& body) {
  return str(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "img-src data:\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      escape_html(title), "</title>\n<style>\n", report_texts().front().text, "</style>\n</head>\n<body>\n", body,
      "<footer>Written by dagmoe ", escape_html(version_text()),
      " from the files of the run folder. Losses are in nats per supervised token.</footer>\n</body>\n</html>\n");
}

std::string html_section(const std::string& title, const std::string& content) {
  return content.empty() ? "" : str("<section>\n<h2>", escape_html(title), "</h2>\n", content, "</section>\n");
}

std::string html_missing(const std::string& file, const std::string& part) {
  return str("<p class=\"missing\">", escape_html(part), " left out: the run folder has no <code>", escape_html(file),
             "</code>.</p>\n");
}

std::string html_table(const HtmlTable& table) {
  const auto css = [&](std::size_t column) {
    return column < table.right.size() && table.right[column] ? " class=\"n\"" : "";
  };
  std::string out = "<div class=\"scroll\"><table>\n";
  if (!table.caption.empty()) out += "<caption>" + table.caption + "</caption>";
  out += "<thead><tr>";
  for (std::size_t c = 0; c < table.header.size(); ++c)
    out += str("<th scope=\"col\"", css(c), ">", table.header[c], "</th>");
  out += "</tr></thead>\n<tbody>\n";
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    const std::string row_class = r < table.row_classes.size() ? table.row_classes[r] : "";
    out += row_class.empty() ? "<tr>" : "<tr class=\"" + row_class + "\">";
    for (std::size_t c = 0; c < table.rows[r].size(); ++c) {
      const char* tag = c == 0 ? "th scope=\"row\"" : "td";
      out += str("<", tag, css(c), ">", table.rows[r][c], c == 0 ? "</th>" : "</td>");
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::vector<double> smoothed(const std::vector<double>& values, double steps) {
  const double keep = std::exp(-1.0 / steps);
  std::vector<double> totals(values.size(), 0.0), weights(values.size(), 0.0);
  const auto sweep = [&](auto place_of) {
    double total = 0, weight = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t place = place_of(i);
      totals[place] += total, weights[place] += weight;  // the value itself is added once, below
      total = keep * (total + values[place]), weight = keep * (weight + 1);
    }
  };
  sweep([](std::size_t i) { return i; });
  sweep([&](std::size_t i) { return values.size() - 1 - i; });
  for (std::size_t i = 0; i < values.size(); ++i) totals[i] = (totals[i] + values[i]) / (weights[i] + 1);
  return totals;
}

double smoothing_steps(std::size_t num_values) { return std::max(1.5, static_cast<double>(num_values) / 60); }

std::span<const MetricChart> metric_charts() {
  static constexpr std::array<MetricChart, 9> charts{
      {{"lr", "Learning rate", "per step", false, true},
       {"grad_norm", "Gradient norm", "2-norm before clipping", true, true},
       {"tokens_per_second", "Speed", "tokens per second", true, true},
       {"gemm_share", "Share of the machine's measured GEMM peak", "1 is the peak", true, true},
       {"aux_loss", "Balance loss", "before its coefficient", true, false},
       {"z_loss", "Router z-loss", "before its coefficient", true, false},
       {"label_smoothing_loss", "Label smoothing loss", "before its coefficient", true, false},
       {"expert_load_max_over_mean", "Busiest expert", "largest load / mean load; 1 is balanced", true, false},
       {"dead_expert_fraction", "Experts without a token", "share of all experts", true, true}}};
  return charts;
}

std::string signed_text(double value, int decimals) {
  const std::string text = fixed(std::abs(value), decimals);
  if (std::ranges::all_of(text, [](char c) { return c == '0' || c == '.'; })) return "\xC2\xB1" + text;
  return (value < 0 ? "\xE2\x88\x92" : "+") + text;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

void write_report(const std::filesystem::path& output, std::span<const std::filesystem::path> run_folders) {
  if (run_folders.empty()) throw InternalError("write_report: no run folder");
  std::vector<RunRecord> runs;
  for (const auto& folder : run_folders) runs.push_back(read_run(folder));
  write_file_atomically(output, runs.size() == 1 ? run_page(runs.front()) : comparison_page(runs));
}

}  // namespace dagmoe
