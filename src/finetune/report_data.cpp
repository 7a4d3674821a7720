#include "finetune/report_data.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "base/yaml.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

// A line of a .jsonl file. One without an end is what a killed process left, unless it is whole.
struct Line {
  std::string_view before, text;  // the file up to here
  bool ended = false;
  std::int64_t number() const { return 1 + std::ranges::count(before, '\n'); }
};

std::vector<Line> lines_of(std::string_view text) {
  std::vector<Line> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const Line line{text.substr(0, begin), text.substr(begin, end - begin), end < text.size()};
    if (!trim(line.text).empty()) lines.push_back(line);
    begin = end + 1;
  }
  return lines;
}

// nullopt for a torn last line. `line.ended` decides, not the place: a damaged line in the middle is never skipped.
std::optional<Json> parse_line(const fs::path& path, const Line& line) {
  Json json = Json::parse(line.text, nullptr, /*allow_exceptions=*/false);
  const bool is_entry = json.is_object() && json.contains("step") && json["step"].is_number_integer();
  if (is_entry) return json;
  if (!line.ended) return std::nullopt;
  const char* found = json.is_discarded() ? "broken JSON" : "no object with an integer 'step'";
  throw InputError(str(path.string(), ":", line.number(), ": found ", found,
                       ", expected one JSON object a line, as finetune writes it; remove the line to go on"));
}

void add_numbers(std::map<std::string, Series>& series, const std::string& prefix, const Json& entry, double step) {
  for (const auto& [key, value] : entry.items()) {
    if (value.is_object()) add_numbers(series, prefix + key + "/", value, step);
    if (!value.is_number() || !std::isfinite(value.get<double>())) continue;
    Series& one = series[prefix + key];
    one.step.push_back(step);
    one.value.push_back(value.get<double>());
  }
}

void add_scores(std::vector<ScoreSeries>& scores, const Json& tasks, std::int64_t step) {
  for (const auto& [task, metrics] : tasks.items()) {
    for (const auto& [metric, value] : metrics.items()) {
      if (!value.is_number() || metric.ends_with("_stderr")) continue;
      auto found = std::ranges::find_if(
          scores, [&](const ScoreSeries& score) { return score.task == task && score.metric == metric; });
      if (found == scores.end()) found = scores.insert(scores.end(), {task, metric, {}});
      ScoreSeries::At at{step, value.get<double>(), std::nullopt};
      const auto error = metrics.find(metric + "_stderr");
      if (error != metrics.end() && error->is_number()) at.error = error->get<double>();
      found->at.push_back(at);
    }
  }
}

void read_metrics(RunRecord& run) {
  const fs::path path = run.folder / "metrics.jsonl";
  if (!fs::is_regular_file(path)) {
    throw InputError(str(run.folder.string(), ": found no metrics.jsonl, expected the folder of a run",
                         "; name the output_dir of a recipe that finetune has run"));
  }
  const auto file = MappedFile::open(path);
  for (const Line& line : lines_of(file->text())) {
    const std::optional<Json> entry = parse_line(path, line);
    if (!entry) {
      run.last_line_torn = true;
      break;
    }
    const auto step = entry->at("step").get<std::int64_t>();
    if (const auto scores = entry->find("scores"); scores != entry->end() && scores->is_object()) {
      add_scores(run.scores, *scores, step);
    } else {
      add_numbers(run.series, "", *entry, static_cast<double>(step));
    }
    if (entry->contains("loss")) run.num_steps = std::max(run.num_steps, step);
    if (const auto skipped = entry->find("skipped"); skipped != entry->end() && *skipped == true) ++run.num_skipped;
  }
}

// One line of experts.jsonl: a row of counts for each layer, all of one length.
ExpertHistory counts_of(const Json& entry, const fs::path& path) {
  const auto step = entry.at("step").get<std::int64_t>();
  ExpertHistory counts{entry.at("layers").get<std::vector<std::int64_t>>(),
                       entry.at("counts").get<std::vector<std::vector<std::int64_t>>>(), step, step};
  bool fits = counts.layers.size() == counts.counts_LE.size();
  for (const auto& row : counts.counts_LE) fits = fits && !row.empty() && row.size() == counts.counts_LE.front().size();
  if (!fits) {
    throw InputError(str(path.string(), ": step ", step, ": found ", counts.counts_LE.size(), " rows of counts for ",
                         counts.layers.size(), " layers, expected one for each, all of the same length above 0"));
  }
  return counts;
}

// Of experts.jsonl only the end is read: a long run has gigabytes of it.
std::optional<ExpertHistory> read_experts(const fs::path& path, std::int64_t num_steps) {
  if (!fs::is_regular_file(path)) return std::nullopt;
  const auto file = MappedFile::open(path);
  const std::int64_t after_step = num_steps - std::max<std::int64_t>(1, num_steps / 10);
  std::string_view text = file->text();
  std::optional<ExpertHistory> sum;
  while (!text.empty()) {
    const bool ended = text.ends_with('\n');
    if (ended) text.remove_suffix(1);
    const auto end = text.rfind('\n');
    const std::size_t begin = end == std::string_view::npos ? 0 : end + 1;
    const Line line{text.substr(0, begin), text.substr(begin), ended};
    text = line.before;
    if (trim(line.text).empty()) continue;
    const std::optional<Json> entry = parse_line(path, line);
    if (!entry) continue;
    const auto step = entry->at("step").get<std::int64_t>();
    if (step <= after_step) break;
    const ExpertHistory counts = counts_of(*entry, path);
    if (!sum) {
      sum = counts;
      continue;
    }
    const bool fits = counts.layers == sum->layers &&
                      (counts.layers.empty() || counts.counts_LE.front().size() == sum->counts_LE.front().size());
    if (!fits) {
      throw InputError(str(path.string(), ": the layers or the number of experts change at step ", step,
                           ", expected the same for the whole run"));
    }
    sum->first_step = step;
    for (std::size_t l = 0; l < counts.counts_LE.size(); ++l) {
      for (std::size_t e = 0; e < counts.counts_LE[l].size(); ++e) sum->counts_LE[l][e] += counts.counts_LE[l][e];
    }
  }
  return sum;
}

// "trainable" is a count, or true for all.
std::int64_t trainable_count(const Json& group) {
  const Json& trainable = group.at("trainable");
  if (!trainable.is_boolean()) return trainable.get<std::int64_t>();
  return trainable.get<bool>() ? group.at("parameters").get<std::int64_t>() : 0;
}

// A text, or a number as some write it.
std::string rate_text(const Json& group, const char* key) {
  if (!group.contains(key) || group[key].is_null()) return "";
  return group[key].is_string() ? group[key].get<std::string>() : group[key].dump();
}

std::vector<GroupLine> groups_of(const Json& json) {
  std::vector<GroupLine> groups;
  for (const Json& line : json) {
    groups.push_back({line.at("group"), line.at("tensors"), line.at("parameters"), trainable_count(line),
                      line.value("bytes", std::int64_t{0}), rate_text(line, "lr"), rate_text(line, "weight_decay")});
  }
  return groups;
}

std::vector<SampleText> samples_of(const Json& json) {
  std::vector<SampleText> samples;
  for (const Json& line : json) {
    SampleText sample{line.at("source"), line.at("tokens"), {}};
    for (const Json& piece : line.at("pieces")) sample.pieces.push_back({piece.at("text"), piece.at("supervised")});
    samples.push_back(std::move(sample));
  }
  return samples;
}

void require_square(std::size_t rows, const std::vector<std::size_t>& columns, const fs::path& path) {
  for (const std::size_t size : columns) {
    if (rows == 0 || size != rows) {
      throw InputError(str(path.string(), ": found a matrix of ", rows, " rows and one of ", size,
                           " columns, expected a square matrix of all experts"));
    }
  }
}

std::optional<EdgeData> edges_of(const Json& json, const char* when, const fs::path& path) {
  const auto found = json.find(when);
  if (found == json.end() || found->is_null()) return std::nullopt;
  EdgeData edges{found->at("tokens"), {}};
  for (const Json& line : found->at("layers")) {
    EdgeLayerData layer{line.at("layer"), line.at("count"), {}};
    for (const Json& iteration : line.at("iterations")) {
      layer.iterations.push_back(
          {iteration.at("mean"), iteration.at("symmetric_share"), iteration.at("self_edge_share")});
      std::vector<std::size_t> columns{layer.count_EE.size()};
      for (const auto& row : layer.count_EE) columns.push_back(row.size());
      for (const auto& row : layer.iterations.back().mean_EE) columns.push_back(row.size());
      require_square(layer.iterations.back().mean_EE.size(), columns, path);
    }
    edges.layers.push_back(std::move(layer));
  }
  return edges;
}

// What `convert` makes of a file that may be missing; a file of another form is an InputError that names it.
template <class Convert>
void read_if_there(const fs::path& path, const Convert& convert) {
  if (!fs::is_regular_file(path)) return;
  try {
    convert(read_json_file(path));
  } catch (const Json::exception& error) {
    throw InputError(str(path.string(), ": is not as finetune writes it: ", error.what(),
                         "; remove the file to leave its part out"));
  }
}

void flatten(const YamlNode& node, const std::string& path, std::vector<std::pair<std::string, std::string>>& out) {
  if (node.kind == YamlNode::Kind::kMap && !node.members.empty()) {
    for (const YamlMember& member : node.members)
      flatten(member.value, path.empty() ? member.key : path + "." + member.key, out);
    return;
  }
  const bool is_list = node.kind == YamlNode::Kind::kList;
  const bool is_flat =
      std::ranges::all_of(node.items, [](const YamlNode& item) { return item.kind == YamlNode::Kind::kScalar; });
  if (is_list && !is_flat) {
    for (std::size_t i = 0; i < node.items.size(); ++i) flatten(node.items[i], path + "." + std::to_string(i), out);
    return;
  }
  std::vector<std::string> items;
  for (const YamlNode& item : node.items) items.push_back(item.text);
  out.emplace_back(path, is_list ? "[" + join(items, ", ") + "]" : node.text);
}

void read_recipe(RunRecord& run) {
  const fs::path path = run.folder / "recipe.yaml";
  if (!fs::is_regular_file(path)) return;
  run.recipe_text = std::string(MappedFile::open(path)->text());
  const YamlDocument document = parse_yaml(*run.recipe_text);
  if (document.is_broken) {
    throw InputError(str(path.string(), ":", document.issues.front().place.line, ": ", document.issues.front().message,
                         "; remove the file to leave its part out"));
  }
  flatten(document.root, "", run.recipe);
}

std::string name_of_folder(const fs::path& folder) {
  const fs::path absolute = fs::absolute(folder).lexically_normal();
  return absolute.has_filename() ? absolute.filename().string() : absolute.parent_path().filename().string();
}

}  // namespace

const Series& RunRecord::of(const std::string& key) const {
  static const Series none;
  const auto found = series.find(key);
  return found == series.end() ? none : found->second;
}

std::string RunRecord::recipe_value(const std::string& key) const {
  const auto found = std::ranges::find(recipe, key, &std::pair<std::string, std::string>::first);
  return found == recipe.end() ? "" : found->second;
}

RunRecord read_run(const fs::path& folder) {
  RunRecord run;
  run.folder = folder;
  run.name = name_of_folder(folder);
  read_metrics(run);
  read_recipe(run);
  const fs::path experts = folder / "experts.jsonl";
  try {
    run.experts = read_experts(experts, run.num_steps);
  } catch (const Json::exception& error) {
    throw InputError(str(experts.string(), ": is not as finetune writes it: ", error.what()));
  }
  read_if_there(folder / "environment.json", [&](const Json& json) { run.environment = json; });
  read_if_there(folder / "analysis/groups.json", [&](const Json& json) { run.groups = groups_of(json); });
  read_if_there(folder / "analysis/samples.json", [&](const Json& json) { run.samples = samples_of(json); });
  const fs::path edges = folder / "analysis/edges.json";
  read_if_there(edges, [&](const Json& json) {
    run.edges_before = edges_of(json, "before", edges);
    run.edges_after = edges_of(json, "after", edges);
  });
  return run;
}

}  // namespace dagmoe
