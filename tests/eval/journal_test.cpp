#include "eval/journal.h"

#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/text.h"
#include "eval/evaluate.h"
#include "eval/results.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

const std::string kTask = R"(task: mine
dataset_path: mine.jsonl
doc_to_text: "{{q}}"
doc_to_choice: ["{{a}}", "{{b}}"]
doc_to_target: "{{label}}"
metrics: [acc, acc_norm]
)";

std::string records(int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += str("{\"q\":\"q", i, "\",\"a\":\"yes", i, "\",\"b\":\"no", i, "\",\"label\":", i % 2, "}\n");
  return text;
}

std::string file_text(const std::filesystem::path& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Dies after a number of answers, as a killed process does.
class DyingModel : public TableModel {
 public:
  explicit DyingModel(std::size_t count) : left_(count) {}
  std::vector<LogLikelihood> log_likelihood(std::span<const LogLikelihoodRequest> asked,
                                            const ResultHook<LogLikelihood>& on_result) override {
    return TableModel::log_likelihood(asked, [&](std::size_t index, const LogLikelihood& result) {
      if (left_-- == 0) throw std::runtime_error("killed");
      on_result(index, result);
    });
  }

 private:
  std::size_t left_;
};

struct Run {
  explicit Run(const std::string& data = records(5)) : file("mine.jsonl", data) {
    options.data_dir = file.path().parent_path();
    options.journal_folder = file.path().parent_path() / "out";
    options.model_identity = "model";
  }
  TaskResult finish(TableModel& model) { return evaluate(parse_task(kTask, "t"), model, options); }
  std::filesystem::path journal() const { return Journal::path_of(options.journal_folder, "mine"); }
  void be_killed(std::size_t after) {
    DyingModel model(after);
    CHECK_THROWS_WITH(evaluate(parse_task(kTask, "t"), model, options), "killed");
  }

  TextFile file;
  EvalOptions options;
};

TableModel table() {
  TableModel model;
  model.log_probs = {{" yes0", -1.0 / 3.0}, {" no1", -1e-300}, {" no2", -2.7182818284590455}, {" yes3", -9.0}};
  return model;
}

void check_same(const TaskResult& a, const TaskResult& b) {
  REQUIRE(a.samples.size() == b.samples.size());
  CHECK(samples_json(a) == samples_json(b));
  for (std::size_t m = 0; m < a.metrics.size(); ++m) {
    CHECK(a.metrics[m].value == b.metrics[m].value);
    CHECK(a.metrics[m].standard_error == b.metrics[m].standard_error);
  }
}

TEST_CASE("journal: a run that was killed goes on where it was, to the same result", "[eval]") {
  TableModel whole_model = table();
  Run whole;
  const TaskResult expected = whole.finish(whole_model);

  Run run;
  run.be_killed(5);  // two documents and a half
  run.options.resume = true;
  TableModel model = table();
  const TaskResult result = run.finish(model);
  CHECK(model.requests.size() == 6);  // of three documents
  CHECK(model.requests.front().context == "q2");
  CHECK(result.num_resumed == 2);
  // The killed model knew no table: only what it answered differs.
  CHECK(result.samples[0].answers.scores[0].log_prob == -10.0);
  for (std::size_t d = 2; d < 5; ++d)
    CHECK(result.samples[d].answers.scores[0].log_prob == expected.samples[d].answers.scores[0].log_prob);
}

TEST_CASE("journal: answers come back bit for bit", "[eval]") {
  Run run;
  TableModel model = table();
  const TaskResult first = run.finish(model);
  run.options.resume = true;
  TableModel unused;
  const TaskResult second = run.finish(unused);
  CHECK(unused.requests.empty());
  CHECK(second.num_resumed == 5);
  check_same(first, second);
}

TEST_CASE("journal: a last line that was cut is asked again", "[eval]") {
  Run run;
  TableModel model = table();
  const TaskResult first = run.finish(model);
  const std::string text = file_text(run.journal());
  for (const std::size_t cut : {std::size_t{1}, std::size_t{20}, std::size_t{60}}) {
    std::ofstream(run.journal(), std::ios::binary) << text.substr(0, text.size() - cut);
    run.options.resume = true;
    TableModel again = table();
    const TaskResult second = run.finish(again);
    CHECK(second.num_resumed == 4);
    CHECK(again.requests.size() == 2);
    check_same(first, second);
    CHECK(file_text(run.journal()) == text);
  }
}

TEST_CASE("journal: killed before the first line was whole, everything is asked", "[eval]") {
  Run run;
  std::filesystem::create_directories(run.options.journal_folder);
  std::ofstream(run.journal()) << "{\"task\":\"mi";
  run.options.resume = true;
  TableModel model;
  CHECK(run.finish(model).num_resumed == 0);
  CHECK(model.requests.size() == 10);
}

TEST_CASE("journal: other data, another model or other settings are refused", "[eval]") {
  Run run;
  run.be_killed(4);
  run.options.resume = true;
  TableModel model;
  const auto refused = [&](const EvalOptions& options, const std::string& task) {
    CHECK_THROWS_WITH(evaluate(parse_task(task, "t"), model, options),
                      Catch::Contains(":1: was written by a run with another model, other data or other settings; run "
                                      "without --resume to begin anew"));
  };
  EvalOptions other = run.options;
  other.model_identity = "another";
  refused(other, kTask);
  other = run.options;
  other.limit = 3;
  refused(other, kTask);
  refused(run.options, kTask + "description: \"Hello. \"\n");
  CHECK(run.finish(model).num_resumed == 2);
}

TEST_CASE("journal: without --resume it begins anew", "[eval]") {
  Run run;
  run.be_killed(4);
  TableModel model;
  CHECK(run.finish(model).num_resumed == 0);
  CHECK(model.requests.size() == 10);
}

TEST_CASE("journal: a damaged line is named", "[eval]") {
  Run run;
  run.be_killed(6);
  std::string text = file_text(run.journal());
  const std::size_t second = text.find('\n') + 1;
  run.options.resume = true;
  TableModel model;
  for (const char* broken :
       {"{\"doc_id\":0}", "[1]", "nonsense", "{\"doc_id\":\"a\",\"text\":\"\",\"loss\":[0,0,false]}"}) {
    std::ofstream(run.journal(), std::ios::binary)
        << text.substr(0, second) << broken << text.substr(text.find('\n', second));
    CHECK_THROWS_WITH(run.finish(model), Catch::Contains(":2: is no line of a journal"));
  }
  std::ofstream(run.journal(), std::ios::binary)
      << text.substr(0, second) << R"({"doc_id":99,"scores":[],"text":"","loss":[0.0,0,false]})"
      << "\n";
  CHECK_THROWS_WITH(run.finish(model), Catch::Contains("document 99 of the journal is none of task 'mine'"));
}

}  // namespace
}  // namespace dagmoe
