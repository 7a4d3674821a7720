#include "eval/results.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <system_error>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr int kDecimals = 4;
// The only filter there is so far; part of every key of results.json.
constexpr std::string_view kFilter = "none";
constexpr std::string_view kStandardErrorSuffix = "_stderr";

// ---- Markdown tables, as lm-evaluation-harness's writer draws them

struct Column {
  std::string header;
  bool align_right = false;
};

std::string padded(std::string_view text, std::size_t width, bool align_right) {
  const std::string space(width - static_cast<std::size_t>(count_code_points(text)), ' ');
  return align_right ? space + std::string(text) : std::string(text) + space;
}

std::string centered(std::string_view text, std::size_t width) {
  const std::size_t space = width - text.size();
  return std::string(space / 2, ' ') + std::string(text) + std::string(space - space / 2, ' ');
}

std::string markdown_table(const std::vector<Column>& columns, const std::vector<std::vector<std::string>>& rows) {
  constexpr std::size_t kMinWidth = 3;
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    std::size_t width = std::max(kMinWidth, columns[c].header.size());
    for (const auto& row : rows) width = std::max(width, static_cast<std::size_t>(count_code_points(row[c])));
    widths.push_back(width);
  }
  std::string header = "|", rule = "|", body;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    header += centered(columns[c].header, widths[c]) + "|";
    rule += std::string(widths[c] - 1, '-') + (columns[c].align_right ? ":|" : "-|");
  }
  for (const auto& row : rows) {
    body += "|";
    for (std::size_t c = 0; c < columns.size(); ++c) body += padded(row[c], widths[c], columns[c].align_right) + "|";
    body += "\n";
  }
  return header + "\n" + rule + "\n" + body;
}

std::string version_text(const std::optional<double>& version) {
  if (!version) return "N/A";
  return *version == std::floor(*version) ? std::to_string(static_cast<std::int64_t>(*version)) : str(*version);
}

std::string error_text(const std::optional<double>& error) { return error ? fixed(*error, kDecimals) : "N/A"; }

// ---- results.json

std::string_view output_type_name(OutputType type) {
  return type == OutputType::kMultipleChoice ? "multiple_choice" : "valid_loss";
}

Json metrics_json(const TaskResult& result) {
  Json json = {{"name", result.task.task}, {"alias", result.task.task}, {"sample_len", result.num_documents}};
  for (const MetricResult& metric : result.metrics) {
    json[str(metric.name, ",", kFilter)] = metric.value;
    json[str(metric.name, kStandardErrorSuffix, ",", kFilter)] =
        metric.standard_error ? Json(*metric.standard_error) : Json("N/A");
  }
  return json;
}

struct SampleHashes {
  std::string doc, prompt, target;
};

SampleHashes hashes_of(const SampleResult& sample) {
  return {sha256_hex(sample.doc.dump(2)), sha256_hex(sample.requests.empty() ? "" : sample.requests.front().context),
          sha256_hex(sample.target)};
}

std::string task_hash(const TaskResult& result) {
  std::string joined;
  for (const SampleResult& sample : result.samples) {
    const SampleHashes hashes = hashes_of(sample);
    joined += hashes.doc + hashes.prompt + hashes.target;
  }
  return sha256_hex(joined);
}

// ["-12.5", "False"]: lm-evaluation-harness writes both as Python's str().
Json response_json(const LogLikelihood& response) {
  return Json::array({Json(response.log_prob).dump(), response.is_greedy ? "True" : "False"});
}

// ---- Scores

std::string score_key(const Score& score) { return score.task + "\n" + score.metric; }

std::optional<double> number_at(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

bool is_higher_better(const Json& results, const std::string& task, const std::string& metric) {
  const auto tasks = results.find("higher_is_better");
  if (tasks == results.end() || !tasks->is_object() || !tasks->contains(task)) return true;
  const Json& metrics = (*tasks)[task];
  return !metrics.is_object() || !metrics.contains(metric) || metrics[metric] != Json(false);
}

}  // namespace

std::string results_table(std::span<const TaskResult> results) {
  std::vector<std::vector<std::string>> rows;
  for (const TaskResult& result : results) {
    std::vector<MetricResult> metrics = result.metrics;
    std::sort(metrics.begin(), metrics.end(),
              [](const MetricResult& a, const MetricResult& b) { return a.name < b.name; });
    for (std::size_t m = 0; m < metrics.size(); ++m) {
      const bool is_first = m == 0;
      rows.push_back({is_first ? result.task.task : "", is_first ? version_text(result.task.version) : "",
                      std::string(kFilter), std::to_string(result.num_fewshot), metrics[m].name,
                      metrics[m].higher_is_better ? "↑" : "↓", fixed(metrics[m].value, kDecimals), "±",
                      error_text(metrics[m].standard_error)});
    }
  }
  return markdown_table({{"Tasks"},
                         {"Version", true},
                         {"Filter"},
                         {"n-shot", true},
                         {"Metric"},
                         {""},
                         {"Value", true},
                         {""},
                         {"Stderr", true}},
                        rows);
}

Json results_json(std::span<const TaskResult> results, const RunInfo& run, const EvalOptions& options) {
  Json json = {{"results", Json::object()},  {"group_subtasks", Json::object()}, {"configs", Json::object()},
               {"versions", Json::object()}, {"n-shot", Json::object()},         {"higher_is_better", Json::object()},
               {"n-samples", Json::object()}};
  Json hashes = Json::object();
  for (const TaskResult& result : results) {
    const std::string& name = result.task.task;
    json["results"][name] = metrics_json(result);
    json["group_subtasks"][name] = Json::array();
    json["configs"][name] = {{"task", name},
                             {"output_type", output_type_name(result.task.output_type)},
                             {"dataset_path", result.task.dataset_path},
                             {"num_fewshot", result.num_fewshot},
                             {"task_file", result.task.source},
                             {"notes", result.notes},
                             {"seconds", result.seconds}};
    json["versions"][name] = result.task.version ? Json(*result.task.version) : Json("N/A");
    json["n-shot"][name] = result.num_fewshot;
    for (const MetricResult& metric : result.metrics)
      json["higher_is_better"][name][metric.name] = metric.higher_is_better;
    json["n-samples"][name] = {{"original", result.num_documents_in_file}, {"effective", result.num_documents}};
    if (run.log_samples) hashes[name] = task_hash(result);
  }
  json["config"] = {{"model", "dagmoe"},
                    {"model_args", {{"pretrained", run.model}, {"peft", run.adapter}, {"dtype", run.dtype}}},
                    {"device", run.device},
                    {"limit", options.limit > 0.0 ? Json(options.limit) : Json(nullptr)},
                    {"fewshot_seed", options.fewshot_seed}};
  json["git_hash"] = nullptr;
  json["date"] = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  json["task_hashes"] = std::move(hashes);
  json["total_evaluation_time_seconds"] = Json(run.seconds).dump();
  return json;
}

Json sample_json(const TaskResult& result, const SampleResult& sample) {
  const SampleHashes hashes = hashes_of(sample);
  Json json = {{"doc_id", sample.doc_id}, {"doc", sample.doc}, {"target", sample.target}};
  Json arguments = Json::object(), responses = Json::array(), filtered = Json::array(), metrics = Json::array();
  for (std::size_t i = 0; i < sample.requests.size(); ++i) {
    arguments[str("gen_args_", i)] = {{"arg_0", sample.requests[i].context},
                                      {"arg_1", sample.requests[i].continuation}};
    responses.push_back(Json::array({response_json(sample.responses[i])}));
    filtered.push_back(response_json(sample.responses[i]));
  }
  for (const auto& [name, unused] : sample.metrics) metrics.push_back(name);
  json["arguments"] = std::move(arguments);
  json["resps"] = std::move(responses);
  json["filtered_resps"] = std::move(filtered);
  json["filter"] = kFilter;
  json["metrics"] = std::move(metrics);
  json["doc_hash"] = hashes.doc;
  json["prompt_hash"] = hashes.prompt;
  json["target_hash"] = hashes.target;
  for (const auto& [name, value] : sample.metrics) json[name] = value;
  if (result.task.output_type == OutputType::kValidLoss) {
    json["nats"] = sample.loss.nats;
    json["num_tokens"] = sample.loss.num_tokens;
  }
  return json;
}

void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results, const RunInfo& run,
                   const EvalOptions& options) {
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  if (problem) throw InputError(str(folder.string(), ": the folder cannot be made: ", problem.message()));
  if (run.log_samples) {
    for (const TaskResult& result : results) {
      std::string lines;
      for (const SampleResult& sample : result.samples) lines += sample_json(result, sample).dump() + "\n";
      write_file_atomically(folder / str("samples_", result.task.task, ".jsonl"), lines);
    }
  }
  write_file_atomically(folder / "results.json", results_json(results, run, options).dump(2) + "\n");
}

std::vector<Score> read_scores(const Json& results, const std::string& where) {
  const auto tasks = results.is_object() ? results.find("results") : results.end();
  if (!results.is_object() || tasks == results.end() || !tasks->is_object()) {
    throw InputError(str(where, ": no object 'results'; is this a results.json of an evaluation?"));
  }
  std::vector<Score> scores;
  for (const auto& [task, metrics] : tasks->items()) {
    if (!metrics.is_object())
      throw InputError(str(where, ": 'results.", task, "': found ", metrics.type_name(), ", expected object"));
    for (const auto& [key, value] : metrics.items()) {
      const std::size_t comma = key.find(',');
      if (comma == std::string::npos || !value.is_number()) continue;
      const std::string metric = key.substr(0, comma);
      if (metric.ends_with(kStandardErrorSuffix)) continue;
      scores.push_back({task, metric, value.get<double>(),
                        number_at(metrics, str(metric, kStandardErrorSuffix, key.substr(comma))),
                        is_higher_better(results, task, metric)});
    }
  }
  return scores;
}

std::optional<double> ScoreChange::standard_error() const {
  if (!before.standard_error || !after.standard_error) return std::nullopt;
  return std::hypot(*before.standard_error, *after.standard_error);
}

std::vector<ScoreChange> compare_scores(std::span<const Score> before, std::span<const Score> after) {
  std::map<std::string, const Score*> known;
  for (const Score& score : before) known.emplace(score_key(score), &score);
  std::vector<ScoreChange> changes;
  for (const Score& score : after) {
    if (const auto found = known.find(score_key(score)); found != known.end())
      changes.push_back({*found->second, score});
  }
  return changes;
}

std::string comparison_table(std::span<const ScoreChange> changes) {
  std::vector<std::vector<std::string>> rows;
  std::string last_task;
  for (const ScoreChange& change : changes) {
    const bool is_new_task = change.after.task != std::exchange(last_task, change.after.task);
    const double difference = change.difference();
    rows.push_back({is_new_task ? change.after.task : "", change.after.metric,
                    change.after.higher_is_better ? "↑" : "↓", fixed(change.before.value, kDecimals),
                    fixed(change.after.value, kDecimals), (difference >= 0.0 ? "+" : "") + fixed(difference, kDecimals),
                    "±", error_text(change.standard_error())});
  }
  return markdown_table(
      {{"Tasks"}, {"Metric"}, {""}, {"Before", true}, {"After", true}, {"Difference", true}, {""}, {"Stderr", true}},
      rows);
}

}  // namespace dagmoe
