#include "eval/task_catalog.h"

#include <cstdlib>
#include <fstream>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "eval/group_scores.h"
#include "eval/results.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Texts = std::vector<std::string>;

std::filesystem::path shipped() { return std::filesystem::path(DAGMOE_SOURCE_DIR) / "eval" / "tasks"; }

const std::string kFamily = R"yaml(task: f_${variant}
variants: [one_two, three]
dataset_path: ${variant}.jsonl
description: "About ${variant_words}. "
doc_to_text: "{{q}}"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{label}}"
metrics: [acc]
)yaml";

/// A folder of task files that names are looked up in.
class Folder {
 public:
  explicit Folder(const std::vector<std::pair<std::string, std::string>>& files) : first_("family.yaml", kFamily) {
    for (const auto& [name, text] : files) std::ofstream(folder() / name) << text;
    setenv("DAGMOE_TASKS", folder().c_str(), 1);
  }
  ~Folder() { unsetenv("DAGMOE_TASKS"); }
  std::filesystem::path folder() const { return first_.path().parent_path(); }

 private:
  TextFile first_;
};

Texts names_of(const TaskSelection& selection) {
  Texts names;
  for (const TaskConfig& task : selection.tasks) names.push_back(task.task);
  return names;
}

const std::string kGroup = "group: g\ngroup_alias: all\nversion: 2\ntasks: [f_three, f_one_two]\nmetrics: [acc]\n";

TEST_CASE("catalog: a file with variants gives a task for each", "[eval]") {
  const Folder folder({});
  const TaskSelection selection = select_tasks(Texts{"f_one_two", "f_three"});
  CHECK(names_of(selection) == Texts{"f_one_two", "f_three"});
  CHECK(selection.tasks[0].dataset_path == "one_two.jsonl");
  CHECK(selection.tasks[0].description.render({}) == "About one two. ");
  CHECK_THROWS_WITH(select_tasks(Texts{"f_thre"}), "--tasks: 'f_thre' is no task; did you mean 'f_three'?");
  CHECK(names_of(select_tasks(Texts{(folder.folder() / "family.yaml").string()})) == Texts{"f_one_two", "f_three"});
}

TEST_CASE("catalog: groups and suites stand for their tasks", "[eval]") {
  const Folder folder({{"g.yaml", kGroup},
                       {"outer.yaml", "group: outer\ntasks: [g]\nmetrics: [acc]\n"},
                       {"s.yaml", "suite: s\ntasks: [{task: f_three, num_fewshot: 4}, f_one_two]\n"}});
  const TaskSelection selection = select_tasks(Texts{"f_one_two", "outer"});
  CHECK(names_of(selection) == Texts{"f_one_two", "f_three"});
  REQUIRE(selection.groups.size() == 2);
  CHECK(selection.groups[1].group == "g");
  const TaskSelection suite = select_tasks(Texts{"s"});
  CHECK(names_of(suite) == Texts{"f_three", "f_one_two"});
  CHECK(suite.tasks[0].num_fewshot == 4);
  CHECK(suite.tasks[1].num_fewshot == 0);
  const std::string text = catalog_text(TaskCatalog(folder.folder()));
  CHECK_THAT(text, Catch::Contains("  f_one_two\n") && Catch::Contains("  g: f_three, f_one_two\n") &&
                       Catch::Contains("  s: f_three (4-shot), f_one_two\n"));
}

TEST_CASE("catalog: one name given by two files is refused", "[eval]") {
  const Folder folder({{"a.yaml", kGroup}, {"b.yaml", "suite: g\ntasks: [f_three]\n"}});
  CHECK_THROWS_WITH(TaskCatalog(folder.folder()), Catch::EndsWith("a.yaml and b.yaml both give 'g'"));
}

TEST_CASE("catalog: a broken file is reported when it is asked for", "[eval]") {
  const Folder folder(
      {{"bad.yaml", "task: [\n"}, {"h.yaml", "group: h\ntasks: [f_three, nothing]\nmetrics: [acc, acx]\n"}});
  CHECK_THROWS_WITH(select_tasks(Texts{"bad"}), Catch::Contains("bad.yaml:"));
  CHECK_THROWS_WITH(select_tasks(Texts{"h"}), Catch::Contains("h.yaml:3:10: metrics: unknown metric 'acx'"));
  CHECK_NOTHROW(select_tasks(Texts{"f_three"}));
}

TEST_CASE("catalog: every subject of MMLU and every task of BBH is in its groups, once", "[eval]") {
  const TaskCatalog catalog(shipped());
  std::multiset<std::string> in_groups;
  for (const char* group : {"mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other", "bbh"}) {
    for (const std::string& task : read_group(shipped() / str(group, ".yaml")).tasks) in_groups.insert(task);
  }
  std::multiset<std::string> tasks;
  for (const auto& [name, place] : catalog.tasks) {
    if (name.starts_with("mmlu_") || name.starts_with("bbh_")) tasks.insert(name);
  }
  CHECK(tasks == in_groups);
  CHECK(read_group(shipped() / "bbh_cot_fewshot.yaml").tasks == read_group(shipped() / "bbh.yaml").tasks);
}

TaskResult result_named(const std::string& name, double acc, double error, std::int64_t documents) {
  TaskResult result;
  result.task.task = name;
  result.task.alias = name.substr(2);
  result.task.version = 1.0;
  result.num_documents = documents;
  result.metrics = {{"acc", acc, error}};
  return result;
}

TEST_CASE("groups: scores stand before their tasks, and once more by themselves", "[eval]") {
  const std::vector<TaskResult> results = {result_named("f_three", 0.5, 0.05, 100),
                                           result_named("f_one_two", 0.25, 0.0125, 400)};
  const TaskGroup group = {
      .group = "g", .alias = "all", .version = 2.0, .tasks = {"f_three", "f_one_two"}, .metrics = {Metric::kAcc}};
  const std::vector<GroupResult> groups = group_scores(std::vector<TaskGroup>{group}, results);
  CHECK(results_table(results, groups) ==
        "|  Tasks   |Version|Filter|n-shot|Metric|   |Value |   |Stderr|\n"
        "|----------|------:|------|-----:|------|---|-----:|---|-----:|\n"
        "|all       |      2|none  |     0|acc   |↑  |0.3000|±  |0.0141|\n"
        "| - one_two|      1|none  |     0|acc   |↑  |0.2500|±  |0.0125|\n"
        "| - three  |      1|none  |     0|acc   |↑  |0.5000|±  |0.0500|\n"
        "\n"
        "|Groups|Version|Filter|n-shot|Metric|   |Value |   |Stderr|\n"
        "|------|------:|------|-----:|------|---|-----:|---|-----:|\n"
        "|all   |      2|none  |     0|acc   |↑  |0.3000|±  |0.0141|\n");
  const Json json = results_json(results, groups, {}, {});
  CHECK(json["groups"]["g"]["acc,none"].get<double>() == Approx(0.3));
  CHECK(json["groups"]["g"]["sample_count"]["acc,none"] == 500);
  CHECK(json["group_subtasks"] == Json({{"g", {"f_three", "f_one_two"}}}));
  CHECK(json["versions"]["g"] == 2.0);
  CHECK(json["results"]["g"]["alias"] == "all");
}

}  // namespace
}  // namespace dagmoe
