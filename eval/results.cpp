#include "eval/results.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <iomanip>
#include <sstream>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::string_view kStandardErrorSuffix = "_stderr";

Json scores_json(const std::vector<MetricResult>& metrics) {
  Json json = Json::object();
  for (const MetricResult& metric : metrics) {
    json[str(metric.name, ",", metric.filter)] = metric.value;
    json[str(metric.name, kStandardErrorSuffix, ",", metric.filter)] =
        metric.standard_error ? Json(*metric.standard_error) : Json("N/A");
  }
  return json;
}

Json task_scores_json(const TaskResult& result) {
  Json json = {{"name", result.task.task}, {"alias", result.task.shown_name()}, {"sample_len", result.num_documents}};
  json.update(scores_json(result.metrics));
  return json;
}

Json group_scores_json(const GroupResult& result) {
  Json json = {
      {"alias", result.group.shown_name()}, {"name", result.group.group}, {"sample_len", result.num_documents}};
  json.update(scores_json(result.metrics));
  Json counts = Json::object();
  for (const MetricResult& metric : result.metrics) counts[str(metric.name, ",", metric.filter)] = result.num_documents;
  if (!counts.empty()) json["sample_count"] = std::move(counts);
  return json;
}

Json generation_json(const GenerationSettings& settings) {
  return {{"until", settings.until},
          {"max_gen_toks", settings.max_gen_toks},
          {"do_sample", settings.do_sample},
          {"temperature", settings.temperature},
          {"top_p", settings.top_p}};
}

Json config_json(const TaskResult& result) {
  Json json = {{"task", result.task.task},
               {"output_type", output_type_name(result.task.output_type)},
               {"dataset_path", result.task.dataset_path},
               {"num_fewshot", result.num_fewshot},
               {"task_file", result.task.source},
               {"notes", result.notes},
               {"seconds", result.seconds}};
  if (result.task.output_type == OutputType::kGenerateUntil)
    json["generation_kwargs"] = generation_json(result.task.generation);
  return json;
}

Json engine_json(const TaskResult& result) {
  return {{"tokens_requested", result.engine.tokens_requested},
          {"tokens_computed", result.engine.tokens_computed},
          {"rows_scored", result.engine.rows_scored},
          {"seconds", result.engine.seconds},
          {"documents_resumed", result.num_resumed}};
}

Json version_json(const std::optional<double>& version) { return version ? Json(*version) : Json("N/A"); }

// ---- Samples

std::string prompt_of(const TaskResult& result, const SampleResult& sample) {
  switch (result.task.output_type) {
    case OutputType::kLogLikelihoodRolling:
      return sample.requests.text;
    case OutputType::kGenerateUntil:
      return sample.requests.generation.prompt;
    default:
      return sample.requests.scores.empty() ? "" : sample.requests.scores.front().context;
  }
}

struct SampleHashes {
  std::string doc, prompt, target;
};

SampleHashes hashes_of(const TaskResult& result, const SampleResult& sample) {
  return {sha256_hex(sample.doc.dump(2)), sha256_hex(prompt_of(result, sample)), sha256_hex(sample.target)};
}

// The harness hashes every line of the samples file: with two filters each document twice.
std::string task_hash(const TaskResult& result) {
  std::string joined;
  for (const SampleResult& sample : result.samples) {
    const SampleHashes hashes = hashes_of(result, sample);
    joined += hashes.doc + hashes.prompt + hashes.target;
  }
  std::string repeated;
  for (std::size_t f = 0; f < std::max<std::size_t>(1, result.task.filters.size()); ++f) repeated += joined;
  return sha256_hex(repeated);
}

// ["-12.5", "False"]: lm-evaluation-harness writes both as Python's str().
Json response_json(const LogLikelihood& response) {
  return Json::array({Json(response.log_prob).dump(), response.is_greedy ? "True" : "False"});
}

void append_scores(const SampleResult& sample, Json& arguments, Json& responses, Json& filtered) {
  for (std::size_t i = 0; i < sample.requests.scores.size(); ++i) {
    const auto& [context, continuation] = sample.requests.scores[i];
    arguments[str("gen_args_", i)] = {{"arg_0", context}, {"arg_1", continuation}};
    responses.push_back(Json::array({response_json(sample.answers.scores[i])}));
    filtered.push_back(response_json(sample.answers.scores[i]));
  }
}

// One line of samples_TASK.jsonl; `filter` is an index of the task's filters.
Json sample_line(const TaskResult& result, const SampleResult& sample, std::size_t filter) {
  const TaskConfig& task = result.task;
  const std::string filter_name = task.filters.empty() ? "none" : task.filters[filter].name;
  const SampleHashes hashes = hashes_of(result, sample);
  Json json = {{"doc_id", sample.doc_id}, {"doc", sample.doc}, {"target", sample.target}};
  Json arguments = Json::object(), responses = Json::array(), filtered = Json::array(), metrics = Json::array();
  if (task.output_type == OutputType::kGenerateUntil) {
    arguments["gen_args_0"] = {{"arg_0", sample.requests.generation.prompt},
                               {"arg_1", generation_json(task.generation)}};
    responses.push_back(Json::array({sample.answers.text}));
    filtered.push_back(sample.filtered[filter]);
  } else if (task.output_type == OutputType::kLogLikelihoodRolling) {
    const std::string score = Json(sample.answers.scores.front().log_prob).dump();
    arguments["gen_args_0"] = {{"arg_0", sample.requests.text}};
    responses.push_back(Json::array({score}));
    filtered.push_back(score);
  } else {
    append_scores(sample, arguments, responses, filtered);
  }
  const auto is_shown = [&](const SampleMetric& metric) { return metric.filter == filter_name; };
  for (const SampleMetric& metric : sample.metrics) {
    if (is_shown(metric)) metrics.push_back(metric.name);
  }
  json["arguments"] = std::move(arguments);
  json["resps"] = std::move(responses);
  json["filtered_resps"] = std::move(filtered);
  json["filter"] = filter_name;
  json["metrics"] = std::move(metrics);
  json["doc_hash"] = hashes.doc;
  json["prompt_hash"] = hashes.prompt;
  json["target_hash"] = hashes.target;
  for (const SampleMetric& metric : sample.metrics) {
    if (is_shown(metric))
      json[metric.name] = metric.has_weight ? Json::array({metric.value, static_cast<std::int64_t>(metric.weight)})
                                            : Json(metric.value);
  }
  if (task.output_type == OutputType::kValidLoss) {
    json["nats"] = sample.answers.loss.nats;
    json["num_tokens"] = sample.answers.loss.num_tokens;
  }
  return json;
}

// ---- The document as a whole

void append_groups(Json& json, std::span<const GroupResult> groups) {
  for (const GroupResult& result : groups) {
    const std::string& name = result.group.group;
    json["results"][name] = group_scores_json(result);
    json["groups"][name] = json["results"][name];
    json["group_subtasks"][name] = result.group.tasks;
    json["versions"][name] = version_json(result.group.version);
    if (result.num_fewshot) json["n-shot"][name] = *result.num_fewshot;
    for (const MetricResult& metric : result.metrics)
      json["higher_is_better"][name][metric.name] = metric.higher_is_better;
  }
}

std::string sanitized_name(const std::string& model) {
  std::string name;
  for (const char c : model) {
    const bool is_odd = std::string_view("\"<>:/|\\?*[]").find(c) != std::string_view::npos;
    if (!is_odd) {
      name += c;
    } else if (!name.ends_with("__")) {
      name += "__";
    }
  }
  return name;
}

Json hash_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(sha256_hex(text)); }
Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

void append_run(Json& json, const RunInfo& run, const EvalOptions& options) {
  const std::string name = run.adapters.empty() ? run.model : run.adapters.back();
  json["model_source"] = "dagmoe";
  json["model_name"] = name;
  json["model_name_sanitized"] = sanitized_name(name);
  json["system_instruction"] = text_or_null(options.system_instruction);
  json["system_instruction_sha"] = hash_or_null(options.system_instruction);
  json["fewshot_as_multiturn"] = options.fewshot_as_multiturn;
  json["chat_template"] = text_or_null(run.chat_template);
  json["chat_template_sha"] = hash_or_null(run.chat_template);
  json["total_evaluation_time_seconds"] = Json(run.seconds).dump();
}

// "2026-01-31T12-00-00.123456", as the harness's file names have it.
std::string date_id() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() % 1'000'000;
  std::tm local{};
  localtime_r(&seconds, &local);
  std::ostringstream text;
  text << std::put_time(&local, "%Y-%m-%dT%H-%M-%S") << '.' << std::setw(6) << std::setfill('0') << micros;
  return text.str();
}

// A second name for a file that is there; a copy where the file system has no links.
void name_twice(const std::filesystem::path& file, const std::filesystem::path& second) {
  std::error_code problem;
  std::filesystem::create_directories(second.parent_path(), problem);
  if (!problem) std::filesystem::create_hard_link(file, second, problem);
  if (problem) std::filesystem::copy_file(file, second, problem);
  if (problem) throw InputError(str(second.string(), ": cannot be written: ", problem.message()));
}

}  // namespace

Json results_json(std::span<const TaskResult> results, std::span<const GroupResult> groups, const RunInfo& run,
                  const EvalOptions& options) {
  Json json = Json::object();
  for (const char* key : {"results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
                          "n-samples", "engine"})
    json[key] = Json::object();
  Json hashes = Json::object();
  for (const TaskResult& result : results) {
    const std::string& name = result.task.task;
    json["results"][name] = task_scores_json(result);
    json["configs"][name] = config_json(result);
    json["versions"][name] = version_json(result.task.version);
    json["n-shot"][name] = result.num_fewshot;
    for (const MetricResult& metric : result.metrics)
      json["higher_is_better"][name][metric.name] = metric.higher_is_better;
    json["n-samples"][name] = {{"original", result.num_documents_in_file}, {"effective", result.num_documents}};
    json["engine"][name] = engine_json(result);
    if (run.log_samples) hashes[name] = task_hash(result);
  }
  append_groups(json, groups);
  if (groups.empty()) json.erase("groups");
  json["config"] = {
      {"model", "dagmoe"},
      {"model_args", {{"pretrained", run.model}, {"peft", join(run.adapters, ",")}, {"dtype", run.dtype}}},
      {"device", run.device},
      {"limit", options.limit > 0.0 ? Json(options.limit) : Json(nullptr)},
      {"bootstrap_iters", 100000},
      {"fewshot_seed", options.fewshot_seed}};
  json["git_hash"] = nullptr;
  json["date"] = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  json["task_hashes"] = std::move(hashes);
  append_run(json, run, options);
  return json;
}

std::vector<Json> samples_json(const TaskResult& result) {
  std::vector<Json> lines;
  for (std::size_t f = 0; f < std::max<std::size_t>(1, result.task.filters.size()); ++f) {
    for (const SampleResult& sample : result.samples) lines.push_back(sample_line(result, sample, f));
  }
  return lines;
}

void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results,
                   std::span<const GroupResult> groups, const RunInfo& run, const EvalOptions& options) {
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  if (problem) throw InputError(str(folder.string(), ": the folder cannot be made: ", problem.message()));
  const Json document = results_json(results, groups, run, options);
  const std::string date = date_id();
  const std::filesystem::path dated = folder / document["model_name_sanitized"].get<std::string>();
  if (run.log_samples) {
    for (const TaskResult& result : results) {
      std::string lines;
      for (const Json& line : samples_json(result)) lines += line.dump() + "\n";
      const std::string name = str("samples_", result.task.task);
      write_file_atomically(folder / (name + ".jsonl"), lines);
      name_twice(folder / (name + ".jsonl"), dated / str(name, "_", date, ".jsonl"));
    }
  }
  write_file_atomically(folder / "results.json", document.dump(2) + "\n");
  name_twice(folder / "results.json", dated / str("results_", date, ".json"));
}

}  // namespace dagmoe
