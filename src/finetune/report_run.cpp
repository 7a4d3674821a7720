// The page of one run.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "finetune/report_page.h"

namespace dagmoe {
namespace {

std::string fact(const std::string& name, const std::string& value, const std::string& detail = "") {
  return str("<div><dt>", name, "</dt><dd>", value, detail.empty() ? "" : "<small>" + detail + "</small>",
             "</dd></div>\n");
}

constexpr const char* kArrow = " \xE2\x86\x92 ";

std::string percent_change(double before, double after) {
  return before == 0 ? "" : signed_text((after - before) / before * 100, 1) + " %";
}

std::string facts(const RunRecord& run) {
  std::string out = "<dl class=\"facts\">\n";
  if (const Series& valid = run.of("valid_loss"); !valid.empty()) {
    const double before = valid.value.front(), after = valid.value.back();
    out += valid.value.size() == 1 ? fact("Validation loss", fixed(after, 4))
                                   : fact("Validation loss", fixed(before, 4) + kArrow + fixed(after, 4),
                                          str(percent_change(before, after), ", step ", number_text(valid.step.front()),
                                              " to ", number_text(valid.step.back())));
  }
  if (const Series& loss = run.of("loss"); !loss.empty()) {
    const auto smooth = smoothed(loss.value, smoothing_steps(loss.value.size()));
    out +=
        fact("Training loss", fixed(loss.value.front(), 4) + kArrow + fixed(smooth.back(), 4), "first, last smoothed");
  }
  out += fact("Steps", with_commas(run.num_steps),
              run.num_skipped == 0 ? "" : with_commas(run.num_skipped) + " skipped: a value was not finite");
  const double tokens = sum(run.of("tokens").value), supervised = sum(run.of("supervised_tokens").value);
  if (tokens > 0)
    out += fact("Tokens", number_text(tokens), str(fixed(100 * supervised / tokens, 1), " % of them supervised"));
  if (const Series& speed = run.of("tokens_per_second"); !speed.empty())
    out += fact("Tokens per second", number_text(median(speed.value)), "median of the steps");
  if (const Series& seconds = run.of("seconds"); !seconds.empty())
    out += fact("Time in steps", human_seconds(sum(seconds.value)));
  if (const Series& memory = run.of("peak_rss_bytes"); !memory.empty())
    out += fact("Peak memory", human_bytes(static_cast<std::int64_t>(*std::ranges::max_element(memory.value))));
  return out + "</dl>\n";
}

std::string subtitle(const RunRecord& run) {
  std::vector<std::string> parts;
  const auto code = [](const std::string& text) { return "<code>" + escape_html(text) + "</code>"; };
  if (const auto model = run.recipe_value("model.path"); !model.empty()) parts.push_back("model " + code(model));
  if (const auto trainable = run.recipe_value("trainable"); !trainable.empty())
    parts.push_back("trained " + code(trainable));
  if (const auto data = run.recipe_value("data.train.0.path"); !data.empty()) parts.push_back("on " + code(data));
  if (const auto seed = run.recipe_value("seed"); !seed.empty()) parts.push_back("seed " + code(seed));
  return "<p class=\"sub\">Fine-tuning run" + (parts.empty() ? "" : ": " + join(parts, ", ")) + "</p>\n";
}

std::string score_text(const ScoreSeries::At& at) {
  return fixed(at.value, 4) + (at.error ? " \xC2\xB1 " + fixed(*at.error, 4) : "");
}

std::string text_or_dash(const std::string& text) { return text.empty() ? "\xE2\x80\x93" : escape_html(text); }

std::string group_section(const RunRecord& run) {
  if (!run.groups) return html_missing("analysis/groups.json", "The table of parameter groups is");
  HtmlTable table{{"Group", "Trained", "Tensors", "Parameters", "Trainable", "Learning rate", "Weight decay", "Memory"},
                  {},
                  {false, false, true, true, true, true, true, true}};
  GroupLine total{"all", 0, 0, 0, 0, "", ""};
  const auto row = [&](const GroupLine& line) {
    const char* state = line.trainable == 0 ? "frozen" : line.trainable == line.parameters ? "yes" : "in part";
    table.rows.push_back({escape_html(line.group), state, with_commas(line.tensors), with_commas(line.parameters),
                          with_commas(line.trainable), text_or_dash(line.lr), text_or_dash(line.weight_decay),
                          human_bytes(line.bytes)});
    table.row_classes.push_back(line.trainable > 0 ? "on" : "off");
  };
  for (const GroupLine& line : *run.groups) {
    row(line);
    total.tensors += line.tensors, total.parameters += line.parameters;
    total.trainable += line.trainable, total.bytes += line.bytes;
  }
  row(total);
  table.row_classes.back() = "";
  if (total.parameters > 0) {
    table.rows.back()[1] =
        fixed(100.0 * static_cast<double>(total.trainable) / static_cast<double>(total.parameters), 2) + " %";
  }
  return html_table(table);
}

Curve line_curve(const Series& series, const std::string& label, int style = 0) {
  return {label, series.step, series.value, CurveKind::kLine, style};
}

// The raw values faintly and their smoothed line.
void add_smoothed(std::vector<Curve>& curves, const Series& series, const std::string& label, int style,
                  bool with_raw = true) {
  if (series.value.size() < 8) return curves.push_back(line_curve(series, label, style));
  if (with_raw) curves.push_back({"", series.step, series.value, CurveKind::kFaint, style});
  curves.push_back(
      {label, series.step, smoothed(series.value, smoothing_steps(series.value.size())), CurveKind::kLine, style});
}

Chart loss_chart(const RunRecord& run) {
  Chart chart{"Loss", "step", "nats per supervised token", {}, /*wide=*/true};
  const Series& loss = run.of("loss");
  if (!loss.empty()) add_smoothed(chart.curves, loss, "training", 0);
  if (const Series& valid = run.of("valid_loss"); !valid.empty())
    chart.curves.push_back({"validation", valid.step, valid.value, CurveKind::kPoints, 1});
  return chart;
}

Chart metric_chart(const RunRecord& run, const MetricChart& metric) {
  Chart chart{metric.title, "step", metric.unit, {}, false, metric.from_zero};
  std::vector<std::pair<std::string, const Series*>> groups;
  const std::string prefix = std::string(metric.key) + "_by_group/";
  for (const auto& [key, series] : run.series) {
    if (key.starts_with(prefix)) groups.emplace_back(key.substr(prefix.size()), &series);
  }
  const Series& all = run.of(metric.key);
  if (metric.smooth) {
    add_smoothed(chart.curves, all, groups.empty() ? "" : "all", 0);
  } else {
    chart.curves.push_back(line_curve(all, ""));
  }
  // A single group has the norm of all.
  if (groups.size() > 1) {
    for (std::size_t i = 0; i < groups.size(); ++i)
      add_smoothed(chart.curves, *groups[i].second, groups[i].first, static_cast<int>(i) + 1, /*with_raw=*/false);
  }
  return chart;
}

// Counts of one layer as shares of its tokens: each token chooses K experts, so a row sums to K.
std::vector<double> relative_load(const std::vector<std::int64_t>& counts_E) {
  double total = 0;
  for (const std::int64_t count : counts_E) total += static_cast<double>(count);
  std::vector<double> load;
  for (const std::int64_t count : counts_E) load.push_back(total == 0 ? 0 : static_cast<double>(count) / total);
  return load;
}

std::string dead_experts(const ExpertHistory& experts) {
  std::string items;
  for (std::size_t l = 0; l < experts.counts_LE.size(); ++l) {
    std::vector<std::string> dead;
    for (std::size_t e = 0; e < experts.counts_LE[l].size(); ++e) {
      if (experts.counts_LE[l][e] == 0) dead.push_back(std::to_string(e));
    }
    if (!dead.empty()) items += str("<li>layer ", experts.layers[l], ": ", join(dead, ", "), "</li>\n");
  }
  if (items.empty()) return "<p>Dead experts: none; each expert of each layer got tokens.</p>\n";
  return "<h3>Dead experts: no token in these steps</h3>\n<ul class=\"note\">\n" + items + "</ul>\n";
}

std::string details(const std::string& title, const std::string& text) {
  return str("<details><summary>", escape_html(title), "</summary><pre>", escape_html(text), "</pre></details>\n");
}

std::string environment_table(const Json& environment) {
  HtmlTable table{{"", ""}, {}, {}};
  for (const auto& [key, value] : environment.items()) {
    if (value.is_object()) {
      for (const auto& [inner, text] : value.items())
        table.rows.push_back(
            {escape_html(key + ": " + inner),
             "<code>" + escape_html(text.is_string() ? text.get<std::string>() : text.dump()) + "</code>"});
    } else {
      table.rows.push_back(
          {escape_html(key), escape_html(value.is_string() ? value.get<std::string>() : value.dump())});
    }
  }
  std::string out = html_table(table);
  const auto head_begin = out.find("<thead>"), head_end = out.find("</thead>");
  return out.erase(head_begin, head_end + 8 - head_begin);
}

std::string origin_section(const RunRecord& run) {
  std::string out = run.environment ? environment_table(*run.environment)
                                    : html_missing("environment.json", "The table of versions and checksums is");
  out += run.recipe_text ? details("The recipe, completed, as run (recipe.yaml)", *run.recipe_text)
                         : html_missing("recipe.yaml", "The recipe is");
  return out;
}

}  // namespace

std::string score_section(const RunRecord& run) {
  HtmlTable table{
      {"Measure", "", "Before", "After", "Difference", "Steps"}, {}, {false, false, true, true, true, true}};
  const auto steps_text = [](double first, double last) { return number_text(first) + kArrow + number_text(last); };
  if (const Series& valid = run.of("valid_loss"); !valid.empty()) {
    const double before = valid.value.front(), after = valid.value.back();
    const std::string steps = steps_text(valid.step.front(), valid.step.back());
    table.rows.push_back({"Validation", "loss, lower is better", fixed(before, 4), fixed(after, 4),
                          signed_text(after - before, 4), steps});
    table.rows.push_back({"Validation", "perplexity, lower is better", fixed(std::exp(before), 2),
                          fixed(std::exp(after), 2), signed_text(std::exp(after) - std::exp(before), 2), steps});
  }
  for (const ScoreSeries& score : run.scores) {
    const auto &first = score.at.front(), &last = score.at.back();
    const bool is_one = score.at.size() == 1;
    table.rows.push_back({escape_html(score.task), escape_html(score.metric), is_one ? "" : score_text(first),
                          score_text(last), is_one ? "" : signed_text(last.value - first.value, 4),
                          is_one ? with_commas(last.step)
                                 : steps_text(static_cast<double>(first.step), static_cast<double>(last.step))});
  }
  std::string out;
  if (!table.rows.empty()) out += html_table(table);
  if (run.of("valid_loss").empty())
    out += "<p class=\"missing\">No validation loss: metrics.jsonl has no line with valid_loss.</p>\n";
  if (run.scores.empty())
    out += "<p class=\"missing\">No task scores: metrics.jsonl has no line with scores.</p>\n";
  else
    out += "<p class=\"note\">\xC2\xB1 is the standard error of a score.</p>\n";
  return out;
}

std::string curve_section(const RunRecord& run) {
  std::string out;
  const Chart loss = loss_chart(run);
  if (loss.curves.empty()) return "<p class=\"missing\">No curves: metrics.jsonl has no finished step.</p>\n";
  const std::string window = number_text(std::round(10 * smoothing_steps(run.of("loss").value.size())) / 10);
  out +=
      str("<figure>", chart_svg(loss), "<figcaption>Faint lines are the values of single steps; full lines are ",
          "averaged over neighbouring steps, with weights that fall by e within ", window,
          " steps. Squares are measurements on the validation data.</figcaption></figure>\n<div class=\"charts\">\n");
  for (const MetricChart& metric : metric_charts()) {
    if (!run.of(metric.key).empty()) out += chart_svg(metric_chart(run, metric)) + "\n";
  }
  return out + "</div>\n";
}

std::string expert_section(const RunRecord& run) {
  if (!run.experts) return html_missing("experts.jsonl", "The use of the experts is");
  const ExpertHistory& experts = *run.experts;
  if (experts.counts_LE.empty()) return "<p class=\"missing\">The model has no experts.</p>\n";
  Heatmap map;
  const auto E = experts.counts_LE.front().size();
  double top = 0;
  for (std::size_t l = 0; l < experts.counts_LE.size(); ++l) {
    map.rows.push_back(relative_load(experts.counts_LE[l]));
    const double most = *std::ranges::max_element(map.rows.back());
    const double least = *std::ranges::min_element(map.rows.back());
    top = std::max(top, most);
    map.row_labels.push_back("layer " + std::to_string(experts.layers[l]));
    map.row_notes.push_back(str(fixed(100 * least, 1), " to ", fixed(100 * most, 1), " %"));
  }
  for (auto& row : map.rows) {
    for (double& share : row) share *= 100;
  }
  map.top = scale_top(top * 100);
  map.description = "Share of each layer's assignments that went to each expert, in per cent";
  map.x_label = "expert";
  map.cell_width = std::clamp(720.0 / static_cast<double>(E), 2.5, 44.0);
  map.cell_height = 16;
  return str("<p>Share of a layer's assignments that each expert got, over steps ", with_commas(experts.first_step),
             " to ", with_commas(experts.last_step), "; even use is ", number_text(100.0 / static_cast<double>(E)),
             " %. Beside each layer: its least and most used expert.</p>\n<figure>",
             scale_svg(map.top, "per cent of the layer's assignments", false), heatmap_svg(map), "</figure>\n",
             dead_experts(experts));
}

std::string sample_section(const RunRecord& run) {
  if (!run.samples) return html_missing("analysis/samples.json", "The first training samples are");
  std::string out =
      "<p>The first training samples as the model sees them. <mark>Bold and underlined</mark> text is "
      "supervised: the loss counts it. The rest is read only.</p>\n";
  for (const SampleText& sample : *run.samples) {
    out += str("<p class=\"note\">", escape_html(sample.source), " \xC2\xB7 ", with_commas(sample.tokens),
               " tokens</p>\n<div class=\"sample\">");
    for (const SamplePiece& piece : sample.pieces)
      out += (piece.supervised ? "<mark>" : "") + escape_html(piece.text) + (piece.supervised ? "</mark>" : "");
    out += "</div>\n";
  }
  return out;
}

std::string run_page(const RunRecord& run) {
  std::string body =
      str("<header><h1>", escape_html(run.name), "</h1>\n", subtitle(run), facts(run), "</header>\n<main>\n");
  if (run.last_line_torn)
    body +=
        "<p class=\"missing\">The last line of metrics.jsonl is not finished and was left out: the run was killed, or "
        "still writes.</p>\n";
  body += html_section("Before and after", score_section(run));
  body += html_section("What was trained", group_section(run));
  body += html_section("Curves", curve_section(run));
  body += html_section("Experts", expert_section(run));
  body += html_section("The learned DAG", edge_section(run));
  body += html_section("What the loss counts", sample_section(run));
  body += html_section("Where it comes from", origin_section(run));
  return html_page(run.name + " \xE2\x80\x93 dagmoe", body + "</main>\n");
}

}  // namespace dagmoe
