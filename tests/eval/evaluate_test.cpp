#include "eval/evaluate.h"

#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

constexpr const char* kTask = R"(task: mine
version: 1
dataset_path: mine.jsonl
description: "Answer.\n\n"
doc_to_text: "Q: {{q}}\nA:"
doc_to_choice: ["{{a}}", "{{b}}"]
doc_to_target: "{{label}}"
metrics: [acc, acc_norm]
)";

std::string record(const std::string& q, const std::string& a, const std::string& b, int label) {
  return str("{\"q\":\"", q, "\",\"a\":\"", a, "\",\"b\":\"", b, "\",\"label\":", label, "}\n");
}

EvalOptions options_for(const TextFile& file) { return {.data_dir = file.path().parent_path()}; }

TEST_CASE("evaluate: choices are asked behind the delimiter and the best is compared with gold", "[eval]") {
  const TextFile file("mine.jsonl",
                      record("x", "yes", "no", 0) + record("y", "up", "downwards", 1) + record("z", "in", "out", 0));
  TableModel model;
  // y: "up" wins as it is, "downwards" per character. z: wrong both ways.
  model.log_probs = {{" yes", -1.0}, {" no", -2.0}, {" up", -3.0}, {" downwards", -4.0}, {" in", -3.0}, {" out", -1.0}};
  const TaskResult result = evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file));
  REQUIRE(model.requests.size() == 6);
  CHECK(model.requests[3].context == "Answer.\n\nQ: y\nA:");
  CHECK(model.requests[3].continuation == " downwards");
  REQUIRE(result.metrics.size() == 2);
  CHECK(result.metrics[0].name == "acc");
  CHECK(result.metrics[0].value == Approx(1.0 / 3.0));
  CHECK(*result.metrics[0].standard_error == Approx(1.0 / 3.0));
  CHECK(result.metrics[1].name == "acc_norm");
  CHECK(result.metrics[1].value == Approx(2.0 / 3.0));
  REQUIRE(result.samples.size() == 3);
  const std::vector<SampleMetric> expected = {{.name = "acc", .value = 0.0}, {.name = "acc_norm", .value = 1.0}};
  CHECK((result.samples[1].metrics == expected));
  CHECK(result.samples[1].answers.scores[1].log_prob == -4.0);
  CHECK(result.notes.empty());
}

TEST_CASE("evaluate: limit takes the first documents, or a share of them rounded up", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0) + record("y", "a", "b", 0) + record("z", "a", "b", 0));
  TableModel model;
  EvalOptions options = options_for(file);
  const auto num_documents = [&](double limit) {
    options.limit = limit;
    return evaluate(parse_task(kTask, "mine.yaml"), model, options).num_documents;
  };
  CHECK(num_documents(0.0) == 3);
  CHECK(num_documents(2.0) == 2);
  CHECK(num_documents(100.0) == 3);
  CHECK(num_documents(0.4) == 2);
  CHECK(evaluate(parse_task(kTask, "mine.yaml"), model, options).num_documents_in_file == 3);
}

TEST_CASE("evaluate: one document has no standard error", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0));
  TableModel model;
  const TaskResult result = evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file));
  CHECK(result.metrics.front().value == 1.0);
  CHECK_FALSE(result.metrics.front().standard_error.has_value());
}

TEST_CASE("evaluate: a gold label outside the choices counts as wrong and is noted", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 2) + record("y", "a", "b", 0));
  TableModel model;
  const TaskResult result = evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file));
  CHECK(result.metrics.front().value == 0.5);
  CHECK(result.notes ==
        std::vector<std::string>{"1 of 2 documents: the gold label is outside the choices; counted as wrong"});
}

TEST_CASE("evaluate: cut prompts and merged borders are noted by document", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "LONG", "LONG", 0) + record("y", "MERGED", "b", 0));
  TableModel model;
  const TaskResult result = evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file));
  REQUIRE(result.notes.size() == 2);
  CHECK_THAT(result.notes[0], Catch::StartsWith("1 of 2 documents: the prompt is longer"));
  CHECK_THAT(result.notes[1], Catch::StartsWith("1 of 2 documents: a token spans the border"));
}

TEST_CASE("evaluate: a choice that cannot be scored is named by file, line and place", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0) + "\n" + record("y", "a", "UNSCORABLE", 0));
  TableModel model;
  CHECK_THROWS_WITH(evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file)),
                    file.name() + ":3: choice 2: the continuation has no tokens");
}

TEST_CASE("evaluate: a missing file says how to name another", "[eval]") {
  TableModel model;
  CHECK_THROWS_WITH(evaluate(parse_task(kTask, "mine.yaml"), model, {.data_dir = "/no/such"}),
                    "/no/such/mine.jsonl: no such file; name the data of task 'mine' with --dataset mine=FILE");
}

TEST_CASE("evaluate: --dataset points a task at another file", "[eval]") {
  const TextFile file("other.jsonl", record("x", "a", "b", 0));
  TableModel model;
  EvalOptions options;
  options.datasets["mine"] = {file.path(), {}};
  CHECK(evaluate(parse_task(kTask, "mine.yaml"), model, options).num_documents == 1);
}

TEST_CASE("evaluate: progress arrives with its total", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0) + record("y", "a", "b", 0));
  TableModel model;
  std::int64_t last = 0;
  evaluate(parse_task(kTask, "mine.yaml"), model, options_for(file), [&](const EvalProgress& at) {
    CHECK(at.total == 2);
    CHECK(at.metric == "acc");
    CHECK(at.value == 1.0);
    last = at.done;
  });
  CHECK(last == 2);
}

// ---- Few-shot prompts

std::string pool_text(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += record(str("pool", i), "no", "yes", i % 2);
  return text;
}

// The numbers of the pool's records in a prompt, in order.
std::vector<int> shots_in(const std::string& prompt) {
  std::vector<int> shots;
  for (std::size_t place = prompt.find("Q: pool"); place != std::string::npos;
       place = prompt.find("Q: pool", place + 1)) {
    shots.push_back(std::stoi(prompt.substr(place + 7)));
  }
  return shots;
}

// The shots of each document for a task that does or does not draw one more.
std::vector<std::vector<int>> shots_of(const std::string& task, const std::string& documents, const std::string& pool,
                                       std::int64_t num_fewshot) {
  const TextFile file("mine.jsonl", documents), pool_file("pool.jsonl", pool);
  EvalOptions options = options_for(file);
  options.num_fewshot = num_fewshot;
  options.fewshot_pools["mine"] = {pool_file.path(), {}};
  TableModel model;
  evaluate(parse_task(task, "mine.yaml"), model, options);
  std::vector<std::vector<int>> shots;
  for (std::size_t r = 0; r < model.requests.size(); r += 2) shots.push_back(shots_in(model.requests[r].context));
  return shots;
}

const std::string kOneMore = std::string(kTask) + "fewshot_draws_one_more: true\n";

std::string six_documents() {
  std::string text;
  for (int i = 0; i < 6; ++i) text += record(str("doc", i), "a", "b", 0);
  return text;
}

TEST_CASE("few-shot: a task without test split draws k + 1 and keeps k, as lm-evaluation-harness does", "[eval]") {
  CHECK(shots_of(kOneMore, six_documents(), pool_text(100), 3) ==
        std::vector<std::vector<int>>{{99, 56, 14}, {11, 74, 4}, {88, 10, 12}, {45, 30, 2}, {2, 44, 82}, {61, 78, 59}});
}

TEST_CASE("few-shot: a task with a test split draws exactly k", "[eval]") {
  // CPython's Random(1234).sample(range(21), 5), twice.
  const auto shots = shots_of(kTask, six_documents(), pool_text(21), 5);
  CHECK(shots[0] == std::vector<int>{14, 3, 0, 2, 1});
  CHECK(shots[1] == std::vector<int>{2, 3, 11, 7, 0});
}

TEST_CASE("few-shot: an example equal to the document is left out", "[eval]") {
  // The first draw of the golden is 99 56 14 and a fourth; its 56 is the document itself.
  const auto shots = shots_of(kOneMore, record("pool56", "no", "yes", 0), pool_text(100), 3);
  REQUIRE(shots.front().size() == 4);  // three examples and the document's own text
  CHECK(shots.front()[0] == 99);
  CHECK(shots.front()[1] == 14);
  CHECK(shots.front()[3] == 56);
}

TEST_CASE("few-shot: copies of the document are never examples", "[eval]") {
  std::string pool;
  for (int i = 0; i < 5; ++i) pool += record("doc0", "a", "b", 0);
  const auto shots = shots_of(kOneMore, record("doc0", "a", "b", 0), pool + pool_text(2), 2);
  REQUIRE(shots.front().size() == 2);
  CHECK(shots.front()[0] != shots.front()[1]);
}

TEST_CASE("few-shot: prompts hold question, delimiter, answer and a blank line", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0)), pool("pool.jsonl", record("p", "no", "yes", 1));
  EvalOptions options = options_for(file);
  options.num_fewshot = 1;
  options.fewshot_pools["mine"] = {pool.path(), {}};
  TableModel model;
  const TaskResult result = evaluate(parse_task(kTask, "mine.yaml"), model, options);
  CHECK(model.requests.front().context == "Answer.\n\nQ: p\nA: yes\n\nQ: x\nA:");
  CHECK(result.num_fewshot == 1);
}

TEST_CASE("few-shot: a pool is required and must be large enough", "[eval]") {
  const TextFile file("mine.jsonl", record("x", "a", "b", 0)), pool("pool.jsonl", pool_text(3));
  EvalOptions options = options_for(file);
  options.num_fewshot = 3;
  TableModel model;
  CHECK_THROWS_WITH(evaluate(parse_task(kTask, "mine.yaml"), model, options),
                    "task 'mine': 3 few-shot examples are asked for; name their file with --fewshot mine=FILE");
  options.fewshot_pools["mine"] = {pool.path(), {}};
  CHECK_NOTHROW(evaluate(parse_task(kTask, "mine.yaml"), model, options));
  CHECK_THROWS_WITH(evaluate(parse_task(kOneMore, "mine.yaml"), model, options),
                    str("task 'mine': 3 few-shot examples need a file of 4 records or more; ", pool.name(), " has 3"));
}

// ---- valid_loss

constexpr const char* kLossTask = "task: held_out\nversion: 1\noutput_type: valid_loss\ndataset_path: valid.jsonl\n";

TEST_CASE("valid_loss: nats per supervised token over all documents", "[eval]") {
  const TextFile file("valid.jsonl", R"({"instruction":"a","output":"bcd"})"
                                     "\n"
                                     R"({"instruction":"e","output":"f"})"
                                     "\n");
  TableModel model;
  const TaskResult result = evaluate(parse_task(kLossTask, "l.yaml"), model, options_for(file));
  REQUIRE(result.metrics.size() == 1);
  CHECK(result.metrics[0].name == "loss");
  CHECK(result.metrics[0].value == 0.5);
  CHECK(*result.metrics[0].standard_error == 0.0);
  CHECK_FALSE(result.metrics[0].higher_is_better);
  CHECK(result.samples[0].answers.loss.num_tokens == 3);
  CHECK(model.loss_requests.size() == 2);
}

TEST_CASE("valid_loss: chatml takes the model's default system turn", "[eval]") {
  const TextFile file("valid.jsonl", R"({"instruction":"a","output":"b"})"
                                     "\n");
  TableModel model;
  EvalOptions options = options_for(file);
  const TextFile config("tokenizer_config.json",
                        R"({"chat_template": "{% for message in messages %}{% if loop.first and )"
                        R"(messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}{{ )"
                        R"('<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }})"
                        R"({% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"})");
  options.model_folder = config.path().parent_path();
  evaluate(parse_task(std::string(kLossTask) + "template: chatml\n", "l.yaml"), model, options);
  std::string text;
  for (const PromptPiece& piece : model.loss_requests.front().pieces) text += piece.text;
  CHECK_THAT(text, Catch::Contains("Be brief."));
}

// ---- Options

TEST_CASE("options: --dataset takes a file and perhaps its labels", "[eval]") {
  const auto [task, files] = parse_dataset_option("piqa=a=b.jsonl,c.lst");
  CHECK(task == "piqa");
  CHECK(files.data == "a=b.jsonl");
  CHECK(files.labels == "c.lst");
  CHECK(parse_dataset_option("piqa=x.jsonl").second.labels.empty());
  for (const char* wrong : {"piqa", "piqa=", "=x.jsonl", "piqa=,y.lst", ""})
    CHECK_THROWS_AS(parse_dataset_option(wrong), ConfigError);
}

TEST_CASE("options: a file for a task that is not run is an error", "[eval]") {
  EvalOptions options;
  options.datasets["mien"] = {"x.jsonl", {}};
  const std::vector<TaskConfig> tasks = {parse_task(kTask, "mine.yaml")};
  CHECK_THROWS_WITH(check_options(options, tasks), "--dataset: 'mien' is not among the tasks; did you mean 'mine'?");
}

}  // namespace
}  // namespace dagmoe
