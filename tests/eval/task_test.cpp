#include <cstdlib>

#include "base/error.h"
#include "eval/task_catalog.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

const std::string kSmallTask = R"(task: mine
version: 2
output_type: multiple_choice
dataset_path: mine.jsonl
doc_to_text: "{{q}}"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{label}}"
metrics: [acc]
)";

std::string issues_of(const std::string& text) {
  try {
    parse_task(text, "mine.yaml");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

// Sets a variable of the environment and takes it back at the end.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Environment() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST_CASE("task: what is not written has lm-evaluation-harness's defaults", "[eval]") {
  const TaskConfig task = parse_task(kSmallTask, "mine.yaml");
  CHECK(task.task == "mine");
  CHECK(task.version == 2.0);
  CHECK(task.target_delimiter == " ");
  CHECK(task.fewshot_delimiter == "\n\n");
  CHECK(task.num_fewshot == 0);
  CHECK_FALSE(task.fewshot_draws_one_more);
  CHECK(task.doc_to_choice.size() == 2);
  CHECK((task.metrics == std::vector<Metric>{Metric::kAcc}));
  CHECK(task.source == kSmallTask);
}

TEST_CASE("task: every file of eval/tasks is good and named after its task", "[eval]") {
  const auto folder = std::filesystem::path(DAGMOE_SOURCE_DIR) / "eval" / "tasks";
  const TaskCatalog catalog(folder);
  CHECK(catalog.tasks.size() == 17 + 57 + 27);
  for (const auto& [name, place] : catalog.tasks) {
    const TaskConfig task = read_task(place.file, place.variant);
    CHECK(task.task == name);
    CHECK(task.version.has_value() == (name != "commonsense_qa"));
    if (place.variant.empty()) CHECK(place.file.stem() == name);
  }
  for (const auto& [name, file] : catalog.groups) CHECK(read_group(file).group == file.stem());
  for (const auto& [name, file] : catalog.suites) CHECK(read_suite(file).suite == file.stem());
}

TEST_CASE("task: every problem of a file is reported at once, with its place", "[eval]") {
  const std::string issues = issues_of(R"(task: my task
output_type: multiple_choice
dataset_paht: x.jsonl
doc_to_text: "{{q"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{label|int}}"
num_fewshot: -1
metrics: [acc, acc, acc_nrom]
)");
  INFO(issues);
  for (const char* expected :
       {"mine.yaml:1:7: task: 'my task' is no name", "dataset_path", "did you mean 'dataset_path'?",
        "doc_to_text: '{{' is never closed", "doc_to_target: '{{label|int}}' is no field", "num_fewshot",
        "metrics: 'acc' is given twice", "unknown metric 'acc_nrom'; did you mean 'acc_norm'"}) {
    CHECK_THAT(issues, Catch::Contains(expected));
  }
  CHECK_THAT(issues, Catch::Contains("problems in mine.yaml; nothing was run"));
}

TEST_CASE("task: a key of another output type is unknown", "[eval]") {
  CHECK_THAT(issues_of("task: a\noutput_type: valid_loss\ndataset_path: x\ndoc_to_text: y\n"),
             Catch::Contains("doc_to_text: unknown key"));
  CHECK_THAT(issues_of(kSmallTask + "template: alpaca\n"), Catch::Contains("template: unknown key"));
}

TEST_CASE("task: valid_loss knows the recipe's formats and templates", "[eval]") {
  const TaskConfig task = parse_task(
      "task: a\noutput_type: valid_loss\ndataset_path: x\nformat: messages\ntemplate: chatml\nmax_seq_len: 512\n",
      "a.yaml");
  CHECK(task.record_format == RecordFormat::kMessages);
  CHECK(task.prompt_template == PromptTemplate::kChatMl);
  CHECK(task.max_seq_len == 512);
  const std::string issues =
      issues_of("task: a\noutput_type: valid_loss\ndataset_path: x\nformat: alpacca\ntemplate: chatlm\n");
  CHECK_THAT(issues, Catch::Contains("unknown format 'alpacca'; did you mean 'alpaca'?"));
  CHECK_THAT(issues, Catch::Contains("unknown template 'chatlm'; did you mean 'chatml'?"));
}

TEST_CASE("task: plain texts are scored without a template, and one beside them is refused", "[eval]") {
  const std::string text = "task: a\noutput_type: valid_loss\ndataset_path: x\nformat: text\n";
  CHECK(parse_task(text, "a.yaml").record_format == RecordFormat::kText);
  CHECK_THAT(issues_of(text + "template: chatml\n"), Catch::Contains("template: means nothing for format text"));
}

TEST_CASE("tasks: a name is looked up in DAGMOE_TASKS and a path is taken as it is", "[eval]") {
  const TextFile file("mine.yaml", kSmallTask);
  const Environment folder("DAGMOE_TASKS", file.path().parent_path().string());
  CHECK(load_tasks(std::vector<std::string>{"mine"}).front().task == "mine");
  CHECK(load_tasks(std::vector<std::string>{file.name()}).front().task == "mine");
  CHECK_THROWS_WITH(load_tasks(std::vector<std::string>{"mien"}), "--tasks: 'mien' is no task; did you mean 'mine'?");
  CHECK_THROWS_WITH(load_tasks(std::vector<std::string>{"mine", file.name()}), "--tasks: 'mine' is given twice");
  CHECK_THROWS_AS(load_tasks(std::vector<std::string>{"no/such.yaml"}), InputError);
}

TEST_CASE("tasks: all unknown names are reported together", "[eval]") {
  const TextFile file("mine.yaml", kSmallTask);
  const Environment folder("DAGMOE_TASKS", file.path().parent_path().string());
  try {
    load_tasks(std::vector<std::string>{"mien", "mine", "nime"});
    FAIL("nothing was thrown");
  } catch (const ConfigError& error) {
    CHECK(error.issues().size() == 2);
  }
}

TEST_CASE("tasks: a DAGMOE_TASKS that is no folder is an error", "[eval]") {
  const Environment folder("DAGMOE_TASKS", "/no/such/folder");
  CHECK_THROWS_WITH(tasks_folder(), "DAGMOE_TASKS: found '/no/such/folder', expected a folder of task files");
}

}  // namespace
}  // namespace dagmoe
