// Reads earlier runs for eval/comparison.h.
#include <algorithm>
#include <system_error>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "eval/comparison.h"

namespace dagmoe {
namespace {

constexpr std::string_view kStandardErrorSuffix = "_stderr", kSamples = "samples_", kJsonl = ".jsonl";

std::optional<double> number_at(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

bool is_higher_better_in(const Json& results, const std::string& task, const std::string& metric) {
  const auto tasks = results.find("higher_is_better");
  if (tasks == results.end() || !tasks->is_object() || !tasks->contains(task)) return true;
  const Json& metrics = (*tasks)[task];
  return !metrics.is_object() || !metrics.contains(metric) || metrics[metric] != Json(false);
}

// A date like the harness puts behind the task's name: "_2026-01-31T12-00-00.123456".
bool is_date_part(std::string_view text) {
  return text.size() >= 19 && text[4] == '-' && text[7] == '-' && text[10] == 'T' &&
         std::all_of(text.begin(), text.begin() + 4, [](char c) { return c >= '0' && c <= '9'; });
}

std::string task_of_file(const std::string& file) {
  std::string name = file.substr(kSamples.size(), file.size() - kSamples.size() - kJsonl.size());
  const std::size_t bar = name.rfind('_');
  if (bar != std::string::npos && is_date_part(std::string_view(name).substr(bar + 1))) name.resize(bar);
  return name;
}

bool is_samples_file(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with(kSamples) && name.ends_with(kJsonl) && !name.ends_with(".partial.jsonl");
}

void append_document(const Json& line, const std::string& task, DocumentScores& scores) {
  DocumentScore score{.doc_id = line.at("doc_id").get<std::int64_t>(),
                      .doc_hash = line.at("doc_hash").get<std::string>()};
  const std::string filter = line.at("filter").get<std::string>();
  if (line.contains("nats")) {
    score.value = line.at("nats").get<double>();
    score.weight = line.at("num_tokens").get<double>();
    scores[score_key(task, "loss", filter)].push_back(score);
    return;
  }
  for (const Json& name : line.at("metrics")) {
    const Json& value = line.at(name.get<std::string>());
    const bool is_weighted = value.is_array() && value.size() == 2 && value[0].is_number() && value[1].is_number();
    if (!value.is_number() && !is_weighted) continue;
    score.value = is_weighted ? value[0].get<double>() : value.get<double>();
    score.weight = is_weighted ? value[1].get<double>() : 1.0;
    scores[score_key(task, name.get<std::string>(), filter)].push_back(score);
  }
}

void read_samples_file(const std::filesystem::path& file, const std::string& task, DocumentScores& scores) {
  const auto mapped = MappedFile::open(file);
  std::int64_t number = 0;
  for (const std::string& line : split(mapped->text(), '\n')) {
    ++number;
    if (line.empty()) continue;
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    try {
      append_document(json, task, scores);
    } catch (const Json::exception&) {
      throw InputError(str(file.string(), ":", number, ": is no line of a samples file"));
    }
  }
}

}  // namespace

std::string Score::shown_metric() const { return filter == "none" ? metric : str(metric, " (", filter, ")"); }

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
      const std::string metric = key.substr(0, comma), filter = key.substr(comma + 1);
      if (metric.ends_with(kStandardErrorSuffix)) continue;
      scores.push_back({task, metric, value.get<double>(),
                        number_at(metrics, str(metric, kStandardErrorSuffix, ",", filter)),
                        is_higher_better_in(results, task, metric), filter});
    }
  }
  return scores;
}

DocumentScores document_scores(std::span<const TaskResult> results) {
  DocumentScores scores;
  for (const TaskResult& result : results) {
    for (const SampleResult& sample : result.samples) {
      DocumentScore score{.doc_id = sample.doc_id, .doc_hash = sha256_hex(sample.doc.dump(2))};
      if (result.task.output_type == OutputType::kValidLoss) {
        score.value = sample.answers.loss.nats;
        score.weight = static_cast<double>(sample.answers.loss.num_tokens);
        scores[score_key(result.task.task, "loss", "none")].push_back(score);
        continue;
      }
      for (const SampleMetric& metric : sample.metrics) {
        score.value = metric.value;
        score.weight = metric.weight;
        scores[score_key(result.task.task, metric.name, metric.filter)].push_back(score);
      }
    }
  }
  return scores;
}

DocumentScores read_document_scores(const std::filesystem::path& folder) {
  std::map<std::string, std::filesystem::path> files;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (!is_samples_file(entry.path())) continue;
    std::filesystem::path& chosen = files[task_of_file(entry.path().filename().string())];
    if (chosen.empty() || chosen.filename() < entry.path().filename()) chosen = entry.path();
  }
  DocumentScores scores;
  for (const auto& [task, file] : files) read_samples_file(file, task, scores);
  return scores;
}

EarlierRun read_earlier_run(const std::filesystem::path& file_or_folder) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(file_or_folder, ignored);
  const std::filesystem::path file = is_folder ? file_or_folder / "results.json" : file_or_folder;
  EarlierRun run{
      .name = file_or_folder.string(), .scores = read_scores(read_json_file(file), file.string()), .documents = {}};
  run.documents = read_document_scores(file.has_parent_path() ? file.parent_path() : std::filesystem::path("."));
  return run;
}

}  // namespace dagmoe
