#include "eval/task.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "base/config_reader.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kMaxFewshot = 1000, kMaxSeqLen = 1 << 20;

bool is_task_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

TextTemplate parse_template(ConfigReader& fields, std::string_view key, const std::string& text) {
  try {
    return TextTemplate(text);
  } catch (const ConfigError& error) {
    fields.issue(key, error.what());
    return {};
  }
}

TextTemplate required_template(ConfigReader& fields, std::string_view key) {
  std::string text;
  fields.required(key, text);
  return parse_template(fields, key, text);
}

std::vector<TextTemplate> parse_templates(ConfigReader& fields, std::string_view key,
                                          const std::vector<std::string>& texts) {
  std::vector<TextTemplate> templates;
  for (const std::string& text : texts) templates.push_back(parse_template(fields, key, text));
  return templates;
}

void bind_metrics(ConfigReader& fields, std::vector<ChoiceMetric>& metrics) {
  std::vector<std::string> names;
  fields.required("metrics", names);
  for (const std::string& name : names) {
    const auto metric = choice_metric_named(name);
    if (!metric) {
      fields.issue("metrics", str("unknown metric '", name, "'", did_you_mean(name, choice_metric_names())));
    } else if (std::find(metrics.begin(), metrics.end(), *metric) != metrics.end()) {
      fields.issue("metrics", str("'", name, "' is given twice"));
    } else {
      metrics.push_back(*metric);
    }
  }
}

void bind_multiple_choice(ConfigReader& fields, TaskConfig& task) {
  fields.optional("labels_path", task.labels_path);
  fields.choice("dataset_format", task.dataset_format,
                {{"jsonl", DatasetFormat::kJsonl}, {"hellaswag_txt", DatasetFormat::kHellaswagTxt}});
  fields.choice("preprocess", task.preprocess,
                {{"none", Preprocess::kNone}, {"arc", Preprocess::kArc}, {"hellaswag", Preprocess::kHellaswag}});
  fields.optional("num_fewshot", task.num_fewshot, {.min = 0, .max = kMaxFewshot});
  fields.optional("fewshot_draws_one_more", task.fewshot_draws_one_more);
  fields.optional("description", task.description);
  task.doc_to_text = required_template(fields, "doc_to_text");
  std::vector<std::string> choices, labels;
  fields.required("doc_to_choice", choices);
  task.doc_to_choice = parse_templates(fields, "doc_to_choice", choices);
  task.doc_to_target = required_template(fields, "doc_to_target");
  fields.optional("target_labels", labels);
  task.target_labels = parse_templates(fields, "target_labels", labels);
  fields.optional("target_delimiter", task.target_delimiter);
  fields.optional("fewshot_delimiter", task.fewshot_delimiter);
  bind_metrics(fields, task.metrics);
}

void bind_valid_loss(ConfigReader& fields, TaskConfig& task) {
  std::string format = "alpaca", prompt_template = "alpaca";
  fields.optional("format", format);
  fields.optional("template", prompt_template);
  fields.optional("max_seq_len", task.max_seq_len, {.min = 0, .max = kMaxSeqLen});
  if (const auto known = record_format_named(format)) {
    task.record_format = *known;
  } else {
    fields.issue("format", str("unknown format '", format, "'", did_you_mean(format, record_format_names())));
  }
  if (task.record_format == RecordFormat::kText && fields.has("template"))
    fields.issue("template", "means nothing for format text, which is scored as it stands; leave it out");
  if (const auto known = prompt_template_named(prompt_template)) {
    task.prompt_template = *known;
  } else {
    fields.issue("template", str("unknown template '", prompt_template, "'",
                                 did_you_mean(prompt_template, prompt_template_names())));
  }
}

std::filesystem::path folder_of_program() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
}

}  // namespace

TaskConfig parse_task(std::string_view text, const std::string& name) {
  ConfigReader fields = ConfigReader::parse(text, name);
  TaskConfig task;
  task.source = text;
  fields.required("task", task.task);
  if (!task.task.empty() && !is_task_name(task.task)) {
    fields.issue("task", str("'", task.task, "' is no name; use letters, digits, '_' and '-'"));
  }
  fields.optional("version", task.version, {.min = 0.0, .max = 1e6});
  fields.choice("output_type", task.output_type,
                {{"multiple_choice", OutputType::kMultipleChoice}, {"valid_loss", OutputType::kValidLoss}});
  fields.required("dataset_path", task.dataset_path);
  switch (task.output_type) {
    case OutputType::kMultipleChoice:
      bind_multiple_choice(fields, task);
      break;
    case OutputType::kValidLoss:
      bind_valid_loss(fields, task);
      break;
  }
  fields.finish();
  return task;
}

TaskConfig read_task(const std::filesystem::path& file) {
  return parse_task(MappedFile::open(file)->text(), file.string());
}

std::filesystem::path tasks_folder() {
  const auto exists = [](const std::filesystem::path& folder) {
    std::error_code ignored;
    return std::filesystem::is_directory(folder, ignored);
  };
  if (const char* named = std::getenv("DAGMOE_TASKS"); named != nullptr && *named != '\0') {
    if (exists(named)) return named;
    throw ConfigError(str("DAGMOE_TASKS: found '", named, "', expected a folder of task files"));
  }
  const std::filesystem::path beside = std::filesystem::path("eval") / "tasks";
  if (exists(beside)) return beside;
  for (std::filesystem::path folder = folder_of_program(); folder.has_relative_path(); folder = folder.parent_path()) {
    if (exists(folder / beside)) return folder / beside;
  }
  throw ConfigError(
      "no folder eval/tasks here or above the program; set DAGMOE_TASKS, or give --tasks the path of a task file");
}

std::vector<std::string> task_names(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<TaskConfig> load_tasks(std::span<const std::string> names_or_paths) {
  std::vector<TaskConfig> tasks;
  std::vector<std::string> issues;
  const auto load = [&](const std::string& item) {
    if (item.ends_with(".yaml")) return read_task(item);
    const std::filesystem::path folder = tasks_folder();
    const std::vector<std::string> known = task_names(folder);
    if (std::find(known.begin(), known.end(), item) != known.end()) return read_task(folder / (item + ".yaml"));
    throw ConfigError(str("--tasks: '", item, "' is no task", did_you_mean(item, known)));
  };
  if (names_or_paths.empty()) throw ConfigError("--tasks: no task is named");
  for (const std::string& item : names_or_paths) {
    try {
      TaskConfig task = load(item);
      const bool is_twice =
          std::any_of(tasks.begin(), tasks.end(), [&](const TaskConfig& other) { return other.task == task.task; });
      if (is_twice) issues.push_back(str("--tasks: '", task.task, "' is given twice"));
      tasks.push_back(std::move(task));
    } catch (const ConfigError& error) {
      issues.insert(issues.end(), error.issues().begin(), error.issues().end());
    }
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
  return tasks;
}

}  // namespace dagmoe
