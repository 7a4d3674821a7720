#include "eval/task_catalog.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <system_error>

#include "base/config_reader.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "base/yaml.h"

namespace dagmoe {
namespace {

std::filesystem::path folder_of_program() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
}

// The words of a file that say what it is; everything else is read when it is needed.
struct FileKind {
  enum class Kind { kTask, kGroup, kSuite, kOther };
  Kind kind = Kind::kOther;
  std::string name;
  std::vector<std::string> variants;
};

FileKind kind_of(const std::filesystem::path& file) {
  const YamlDocument document = parse_yaml(MappedFile::open(file)->text());
  FileKind result;
  const auto text_of = [&](std::string_view key) {
    const YamlNode* node = document.root.find(key);
    return node != nullptr && node->kind == YamlNode::Kind::kScalar ? node->text : "";
  };
  // A broken file counts as a task of its own name, so that whoever asks for that gets its problems.
  result.name = file.stem().string();
  if (document.is_broken) return {FileKind::Kind::kTask, result.name, {}};
  for (const auto& [key, kind] : {std::pair{"task", FileKind::Kind::kTask}, std::pair{"group", FileKind::Kind::kGroup},
                                  std::pair{"suite", FileKind::Kind::kSuite}}) {
    if (document.root.find(key) == nullptr) continue;
    result.kind = kind;
    if (const std::string name = text_of(key); !name.empty()) result.name = name;
    break;
  }
  if (const YamlNode* variants = document.root.find("variants"); variants != nullptr) {
    for (const YamlNode& variant : variants->items) result.variants.push_back(variant.text);
  }
  return result;
}

std::vector<std::string> sorted_names(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <class Map>
void append_keys(const Map& map, std::vector<std::string>& names) {
  for (const auto& [name, unused] : map) names.push_back(name);
}

/// Collects tasks and groups behind the names that the user gave.
class Selector {
 public:
  void add_item(const std::string& item) {
    if (!named_.insert({item, true}).second) {
      issues_.push_back(str("--tasks: '", item, "' is given twice"));
      return;
    }
    try {
      if (item.ends_with(".yaml")) {
        add_file(item);
      } else {
        add_name(item, std::nullopt, /*is_asked_for=*/true);
      }
    } catch (const ConfigError& error) {
      issues_.insert(issues_.end(), error.issues().begin(), error.issues().end());
    }
  }

  TaskSelection finish() {
    if (!issues_.empty()) throw ConfigError(std::move(issues_), "");
    return std::move(selection_);
  }

 private:
  const TaskCatalog& catalog() {
    if (!catalog_) catalog_.emplace(tasks_folder());
    return *catalog_;
  }

  void add_file(const std::filesystem::path& file) {
    const FileKind kind = kind_of(file);
    if (kind.kind == FileKind::Kind::kGroup) return add_group(read_group(file), std::nullopt);
    if (kind.kind == FileKind::Kind::kSuite) return add_suite(read_suite(file));
    if (kind.variants.empty()) return add_task(read_task(file), std::nullopt, true);
    for (const std::string& variant : kind.variants) add_task(read_task(file, variant), std::nullopt, true);
  }

  void add_name(const std::string& name, std::optional<std::int64_t> num_fewshot, bool is_asked_for) {
    if (const auto found = catalog().tasks.find(name); found != catalog().tasks.end())
      return add_task(read_task(found->second.file, found->second.variant), num_fewshot, is_asked_for);
    if (const auto found = catalog().groups.find(name); found != catalog().groups.end())
      return add_group(read_group(found->second), num_fewshot);
    if (const auto found = catalog().suites.find(name); found != catalog().suites.end())
      return add_suite(read_suite(found->second));
    throw ConfigError(str("--tasks: '", name, "' is no task", did_you_mean(name, catalog().names())));
  }

  void add_task(TaskConfig task, std::optional<std::int64_t> num_fewshot, bool is_asked_for) {
    if (num_fewshot) task.num_fewshot = *num_fewshot;
    const bool is_there = std::any_of(selection_.tasks.begin(), selection_.tasks.end(),
                                      [&](const TaskConfig& other) { return other.task == task.task; });
    if (is_there && is_asked_for) issues_.push_back(str("--tasks: '", task.task, "' is given twice"));
    if (!is_there) selection_.tasks.push_back(std::move(task));
  }

  void add_group(const TaskGroup& group, std::optional<std::int64_t> num_fewshot) {
    const bool is_there = std::any_of(selection_.groups.begin(), selection_.groups.end(),
                                      [&](const TaskGroup& other) { return other.group == group.group; });
    if (is_there) return;
    selection_.groups.push_back(group);
    for (const std::string& name : group.tasks) add_name(name, num_fewshot, /*is_asked_for=*/false);
  }

  void add_suite(const TaskSuite& suite) {
    for (const auto& [task, num_fewshot] : suite.tasks) add_name(task, num_fewshot, /*is_asked_for=*/false);
  }

  std::optional<TaskCatalog> catalog_;
  std::map<std::string, bool> named_;
  TaskSelection selection_;
  std::vector<std::string> issues_;
};

}  // namespace

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

TaskCatalog::TaskCatalog(const std::filesystem::path& folder) {
  std::map<std::string, std::string> owners;
  std::vector<std::string> issues;
  const auto claim = [&](const std::string& name, const std::string& file) {
    const auto [owner, is_new] = owners.emplace(name, file);
    if (!is_new) issues.push_back(str(folder.string(), ": ", owner->second, " and ", file, " both give '", name, "'"));
    return is_new;
  };
  for (const std::string& file : sorted_names(folder)) {
    const FileKind kind = kind_of(folder / file);
    std::vector<std::string> names = {kind.name};
    if (!kind.variants.empty()) names.clear();
    for (const std::string& variant : kind.variants) names.push_back(with_variant(kind.name, variant));
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!claim(names[i], file)) continue;
      if (kind.kind == FileKind::Kind::kGroup) {
        groups.emplace(names[i], folder / file);
      } else if (kind.kind == FileKind::Kind::kSuite) {
        suites.emplace(names[i], folder / file);
      } else {
        tasks.emplace(names[i], Place{folder / file, kind.variants.empty() ? "" : kind.variants[i]});
      }
    }
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

std::vector<std::string> TaskCatalog::names() const {
  std::vector<std::string> names;
  append_keys(tasks, names);
  append_keys(groups, names);
  append_keys(suites, names);
  return names;
}

TaskGroup read_group(const std::filesystem::path& file) {
  ConfigReader fields = ConfigReader::open(file);
  TaskGroup group;
  std::vector<std::string> metrics;
  fields.required("group", group.group);
  fields.optional("group_alias", group.alias);
  fields.optional("version", group.version, {.min = 0.0, .max = 1e6});
  fields.required("tasks", group.tasks);
  fields.required("metrics", metrics);
  fields.optional("weight_by_size", group.weight_by_size);
  for (const std::string& name : metrics) {
    if (const auto metric = metric_named(name)) {
      group.metrics.push_back(*metric);
    } else {
      fields.issue("metrics", str("unknown metric '", name, "'; known: acc, acc_norm, acc_bytes, exact_match, ..."));
    }
  }
  fields.finish();
  return group;
}

void bind(ConfigReader& fields, TaskSuite::Member& member) {
  fields.required("task", member.task);
  fields.optional("num_fewshot", member.num_fewshot, {.min = 0, .max = 1000});
}

TaskSuite read_suite(const std::filesystem::path& file) {
  ConfigReader fields = ConfigReader::open(file);
  TaskSuite suite;
  fields.required("suite", suite.suite);
  fields.optional("description", suite.description);
  fields.section_or_word("tasks", suite.tasks, "task");
  if (suite.tasks.empty()) fields.issue("tasks", "expected one or more tasks");
  fields.finish();
  return suite;
}

bool is_task_file(const std::filesystem::path& file) {
  const YamlDocument document = parse_yaml(MappedFile::open(file)->text());
  return std::any_of(document.root.members.begin(), document.root.members.end(), [](const YamlMember& member) {
    return member.key == "task" || member.key == "group" || member.key == "suite";
  });
}

void check_task_file(const std::filesystem::path& file) {
  const FileKind kind = kind_of(file);
  if (kind.kind == FileKind::Kind::kGroup) {
    read_group(file);
  } else if (kind.kind == FileKind::Kind::kSuite) {
    read_suite(file);
  } else if (kind.variants.empty()) {
    read_task(file);
  } else {
    for (const std::string& variant : kind.variants) read_task(file, variant);
  }
}

TaskSelection select_tasks(std::span<const std::string> names_or_paths) {
  if (names_or_paths.empty()) throw ConfigError("--tasks: no task is named");
  Selector selector;
  for (const std::string& item : names_or_paths) selector.add_item(item);
  return selector.finish();
}

std::vector<TaskConfig> load_tasks(std::span<const std::string> names_or_paths) {
  return select_tasks(names_or_paths).tasks;
}

std::string catalog_text(const TaskCatalog& catalog) {
  std::string text = "tasks\n";
  std::map<std::filesystem::path, std::vector<std::string>> files;
  for (const auto& [name, place] : catalog.tasks) files[place.file].push_back(name);
  for (const auto& [file, names] : files) {
    for (const std::string& name : names) text += "  " + name + "\n";
  }
  if (!catalog.groups.empty()) text += "groups, scored as one too\n";
  for (const auto& [name, file] : catalog.groups) {
    const TaskGroup group = read_group(file);
    const bool is_long = group.tasks.size() > 4;
    const std::vector<std::string> shown(group.tasks.begin(), group.tasks.begin() + (is_long ? 2 : group.tasks.size()));
    text += str("  ", name, ": ", join(shown, ", "), is_long ? str(", ... (", group.tasks.size(), ")") : "", "\n");
  }
  if (!catalog.suites.empty()) text += "suites, lists of tasks with their numbers of examples\n";
  for (const auto& [name, file] : catalog.suites) {
    const TaskSuite suite = read_suite(file);
    std::vector<std::string> shown;
    for (const auto& [task, num_fewshot] : suite.tasks)
      shown.push_back(num_fewshot ? str(task, " (", *num_fewshot, "-shot)") : task);
    text += str("  ", name, ": ", join(shown, ", "), "\n");
  }
  return text;
}

}  // namespace dagmoe
