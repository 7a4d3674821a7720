#include "eval/results.h"

#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/text.h"
#include "eval/comparison.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

std::string file_text(const std::filesystem::path& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TaskResult result_named(const std::string& name) {
  TaskResult result;
  result.task.task = name;
  result.task.version = 1.0;
  result.num_documents = 2;
  result.num_documents_in_file = 3;
  result.metrics = {{"acc_norm", 0.5, 0.5}, {"acc", 0.485, 0.03542810683297719}};
  SampleResult sample;
  sample.doc = parse_json(
      "{\"goal\":\"Caf\u00e9 "
      "\\\"x\\\"\\n\\u0001\x7f\",\"sol1\":\"a\",\"sol2\":\"b\",\"label\":1,\"l\":[],\"o\":{},\"f\":0.5,\"n\":[1,[2]]}",
      "test");
  sample.target = "1";
  for (const char* continuation : {" a", " b"})
    sample.requests.scores.push_back({"Question: x\nAnswer:", continuation});
  sample.answers.scores = {{.log_prob = -1.5, .is_greedy = true}, {.log_prob = -2.25}};
  sample.metrics = {{.name = "acc", .value = 0.0}, {.name = "acc_norm", .value = 1.0}};
  result.samples = {sample};
  return result;
}

TEST_CASE("results: the table has lm-evaluation-harness's columns and four decimals", "[eval]") {
  const TaskResult result = result_named("arc_easy");
  CHECK(results_table({&result, 1}) ==
        "| Tasks  |Version|Filter|n-shot| Metric |   |Value |   |Stderr|\n"
        "|--------|------:|------|-----:|--------|---|-----:|---|-----:|\n"
        "|arc_easy|      1|none  |     0|acc     |↑  |0.4850|±  |0.0354|\n"
        "|        |       |none  |     0|acc_norm|↑  |0.5000|±  |0.5000|\n");
}

TEST_CASE("results: a score of one document has no standard error", "[eval]") {
  TaskResult result = result_named("held_out");
  result.metrics = {{.name = "loss", .value = 2.125, .higher_is_better = false}};
  CHECK_THAT(results_table({&result, 1}), Catch::Contains("|loss  |↓  |2.1250|±  |   N/A|"));
  CHECK(results_json({&result, 1}, {}, {}, {})["results"]["held_out"]["loss_stderr,none"] == "N/A");
}

TEST_CASE("results: the document has lm-evaluation-harness's keys", "[eval]") {
  const TaskResult result = result_named("arc_easy");
  const Json json = results_json(
      {&result, 1}, {}, {.model = "models/a", .dtype = "float32", .device = "cpu", .seconds = 1.5, .log_samples = true},
      {.limit = 2.0});
  const Json& scores = json["results"]["arc_easy"];
  CHECK(scores["alias"] == "arc_easy");
  CHECK(scores["sample_len"] == 2);
  CHECK(scores["acc,none"] == 0.485);
  CHECK(scores["acc_stderr,none"] == 0.03542810683297719);
  CHECK(json["versions"]["arc_easy"] == 1.0);
  CHECK(json["n-shot"]["arc_easy"] == 0);
  CHECK(json["higher_is_better"]["arc_easy"]["acc"] == true);
  CHECK(json["n-samples"]["arc_easy"] == Json({{"original", 3}, {"effective", 2}}));
  CHECK(json["config"]["limit"] == 2.0);
  CHECK(json["total_evaluation_time_seconds"] == "1.5");
  CHECK(json["task_hashes"]["arc_easy"].get<std::string>().size() == 64);
  for (const char* key : {"group_subtasks", "configs", "git_hash", "date"}) CHECK(json.contains(key));
}

TEST_CASE("results: hashes and strings of a sample are those that lm-evaluation-harness writes", "[eval]") {
  const TaskResult result = result_named("piqa");
  const Json json = samples_json(result).front();
  // hashlib.sha256 of json.dumps(doc, indent=2, ensure_ascii=False), of the first context and of str(target).
  CHECK(json["doc_hash"] == "f942dc3b8ccf0e4aa264cb5e2bb4b5db4519833d58e2675809b8c469eb7c573b");
  CHECK(json["prompt_hash"] == "e4dc0be7b8627f8bc9fa055cb53bd94f6bcefd227f36f42e7c0a708a4ee6ab7c");
  CHECK(json["target_hash"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b");
  CHECK(json["arguments"]["gen_args_1"] == Json({{"arg_0", "Question: x\nAnswer:"}, {"arg_1", " b"}}));
  CHECK(json["resps"].dump() == R"([[["-1.5","True"]],[["-2.25","False"]]])");
  CHECK(json["filtered_resps"].dump() == R"([["-1.5","True"],["-2.25","False"]])");
  CHECK(json["metrics"] == Json({"acc", "acc_norm"}));
  CHECK(json["acc_norm"] == 1.0);
  CHECK(json["filter"] == "none");
}

TEST_CASE("results: a loss sample holds its nats and tokens", "[eval]") {
  TaskResult result = result_named("held_out");
  result.task.output_type = OutputType::kValidLoss;
  SampleResult sample;
  sample.answers.loss = {.nats = 3.0, .num_tokens = 2};
  result.samples = {sample};
  const Json json = samples_json(result).front();
  CHECK(json["nats"] == 3.0);
  CHECK(json["num_tokens"] == 2);
  CHECK(json["arguments"].empty());
}

TEST_CASE("results: files are written and read back", "[eval]") {
  const TextFile place("x", "");
  const auto folder = place.path().parent_path() / "new" / "folder";
  const TaskResult result = result_named("arc_easy");
  write_results(folder, {&result, 1}, {}, {.model = "models/a", .log_samples = true}, {});
  const auto scores = read_scores(read_json_file(folder / "results.json"), "results.json");
  REQUIRE(scores.size() == 2);
  CHECK(scores[0].metric == "acc_norm");
  CHECK(scores[1].value == 0.485);
  CHECK(*scores[1].standard_error == 0.03542810683297719);
  CHECK(parse_json(file_text(folder / "samples_arc_easy.jsonl"), "samples")["doc_id"] == 0);
}

TEST_CASE("results: without log_samples only results.json is written", "[eval]") {
  const TextFile place("x", "");
  const TaskResult result = result_named("arc_easy");
  write_results(place.path().parent_path(), {&result, 1}, {}, {.model = "models/a"}, {});
  CHECK_FALSE(std::filesystem::exists(place.path().parent_path() / "samples_arc_easy.jsonl"));
  CHECK(read_json_file(place.path().parent_path() / "results.json")["task_hashes"].empty());
}

}  // namespace
}  // namespace dagmoe
