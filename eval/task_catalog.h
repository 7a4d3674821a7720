#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/task.h"

namespace dagmoe {

/// Tasks whose scores are also given as one (key `group` of a file in eval/tasks).
struct TaskGroup {
  std::string group, alias;
  std::optional<double> version;
  std::vector<std::string> tasks;  ///< names of tasks and of other groups
  std::vector<Metric> metrics;     ///< what is aggregated
  bool weight_by_size = true;      ///< by documents; else the plain mean of the tasks
  const std::string& shown_name() const { return alias.empty() ? group : alias; }
};

/// A named list of tasks, each with its number of examples (key `suite`). Nothing is aggregated.
struct TaskSuite {
  std::string suite, description;
  struct Member {
    std::string task;  ///< or a group
    std::optional<std::int64_t> num_fewshot;
  };
  std::vector<Member> tasks;
};

/// What a run asks: tasks, each once, in the order they were named, and the groups that were named or lie in them.
struct TaskSelection {
  std::vector<TaskConfig> tasks;
  std::vector<TaskGroup> groups;  ///< a group before its parts
};

/// Where task names are looked up: the environment's DAGMOE_TASKS, else eval/tasks of the current folder, else of the
/// nearest folder above the program. Throws ConfigError when there is none.
std::filesystem::path tasks_folder();

/// Every name in a folder of task files. A file is a task, a task for each of its `variants` (${variant} in its text
/// becomes that word, ${variant_words} the same with spaces for underscores), a group or a suite.
struct TaskCatalog {
  /// Reads names only. Throws ConfigError for a name that two files give.
  explicit TaskCatalog(const std::filesystem::path& folder);
  struct Place {
    std::filesystem::path file;
    std::string variant;
  };
  std::map<std::string, Place> tasks;
  std::map<std::string, std::filesystem::path> groups, suites;
  std::vector<std::string> names() const;
};

/// Reads one file. Throws ConfigError with every problem.
TaskGroup read_group(const std::filesystem::path& file);
TaskSuite read_suite(const std::filesystem::path& file);
/// True for a file that says `task`, `group` or `suite`.
bool is_task_file(const std::filesystem::path& file);
/// Reads a file of any kind; of one with variants every variant.
void check_task_file(const std::filesystem::path& file);

/// Names of tasks, groups and suites, or paths of .yaml files, in the given order. Throws ConfigError with every
/// problem: an unknown name (with the nearest known one), a name given twice, a broken file.
TaskSelection select_tasks(std::span<const std::string> names_or_paths);
/// The tasks of select_tasks.
std::vector<TaskConfig> load_tasks(std::span<const std::string> names_or_paths);
/// Tasks, groups with what is in them, and suites, for people.
std::string catalog_text(const TaskCatalog& catalog);

}  // namespace dagmoe
