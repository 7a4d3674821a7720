// What each kind of task asks a model and how its answers are scored, with a model that is a table.
#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "eval/evaluate.h"
#include "eval/results.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

EvalOptions options_for(const TextFile& file) { return {.data_dir = file.path().parent_path()}; }

double metric_of(const TaskResult& result, const std::string& name, const std::string& filter = "none") {
  for (const MetricResult& metric : result.metrics) {
    if (metric.name == name && metric.filter == filter) return metric.value;
  }
  throw std::runtime_error("no metric " + name);
}

const std::string kContinuation = R"(task: last
output_type: loglikelihood
dataset_path: last.jsonl
preprocess: lambada
doc_to_text: "{{context}}"
doc_to_target: "{{last_word}}"
metrics: [perplexity, acc]
)";

TEST_CASE("loglikelihood: the target is asked behind the text without a delimiter of its own", "[eval]") {
  const TextFile file("last.jsonl", R"({"text":"one two three"})"
                                    "\n"
                                    R"({"text":"four five"})"
                                    "\n");
  TableModel model;
  model.log_probs = {{" three", -0.25}, {" five", -1.0}};
  const TaskResult result = evaluate(parse_task(kContinuation, "t"), model, options_for(file));
  REQUIRE(model.requests.size() == 2);
  CHECK(model.requests[0].context == "one two");
  CHECK(model.requests[0].continuation == " three");
  CHECK(metric_of(result, "acc") == 0.5);
  CHECK(metric_of(result, "perplexity") == Approx(std::exp(0.625)));
  const Json sample = samples_json(result).front();
  CHECK(sample["target"] == " three");
  CHECK(sample["perplexity"] == -0.25);
  CHECK(sample["acc"] == 1.0);
}

TEST_CASE("rolling: the detokenised page is scored and the original's words are counted", "[eval]") {
  const TextFile file("pages.txt", "\n = One = \n \n a , b\n = Two = \n c\n");
  TableModel model;
  EvalOptions options;
  options.datasets["wiki"] = {file.path(), {}};
  const std::string task =
      "task: wiki\noutput_type: loglikelihood_rolling\ndataset_path: x\npreprocess: wikitext\ndoc_to_target: "
      "\"{{text}}\"\ndoc_to_words: \"{{page}}\"\nmetrics: [word_perplexity, byte_perplexity, bits_per_byte]\n";
  const TaskResult result = evaluate(parse_task(task, "t"), model, options);
  REQUIRE(model.rolling_texts.size() == 2);
  CHECK(model.rolling_texts[0] == " = One =\n\na, b");
  CHECK(result.samples[0].doc["page"] == " = One = \n \n a , b");
  // The table says half a nat a byte of what is scored.
  const double nats = 0.5 * static_cast<double>(model.rolling_texts[0].size() + model.rolling_texts[1].size());
  const double words = 7 + 6, bytes = 18 + 13;
  CHECK(metric_of(result, "word_perplexity") == Approx(std::exp(nats / words)));
  CHECK(metric_of(result, "byte_perplexity") == Approx(std::exp(nats / bytes)));
  CHECK(metric_of(result, "bits_per_byte") == Approx(nats / bytes / std::log(2.0)));
  CHECK(samples_json(result)[0]["word_perplexity"] == Json::array({-0.5 * 14.0, 7}));
  CHECK(samples_json(result)[0]["resps"].dump() == R"([["-7.0"]])");
}

const std::string kGeneration = R"yaml(task: sums
output_type: generate_until
dataset_path: sums.jsonl
doc_to_text: "Q: {{q}}\nA:"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["Q:", "END"], max_gen_toks: 7}
metrics: [exact_match]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "= ([0-9]+)"}, take_first]}
  - {name: last, filter: [{function: regex, regex_pattern: "[0-9]+", group_select: -1}]}
)yaml";

TEST_CASE("generate_until: answers are compared under every filter", "[eval]") {
  const TextFile file("sums.jsonl", R"({"q":"1+1","a":"2"})"
                                    "\n"
                                    R"({"q":"2+3","a":"5"})"
                                    "\n");
  TableModel model;
  model.answers = {{"Q: 1+1\nA:", " = 2"}, {"Q: 2+3\nA:", " = 4, no 5"}};
  const TaskResult result = evaluate(parse_task(kGeneration, "t"), model, options_for(file));
  REQUIRE(model.generate_requests.size() == 2);
  CHECK(model.generate_requests[0].stop == std::vector<std::string>{"Q:", "END"});
  CHECK(model.generate_requests[0].max_new_tokens == 7);
  CHECK(model.generate_requests[0].temperature == 0.0);
  CHECK(metric_of(result, "exact_match", "strict") == 0.5);
  CHECK(metric_of(result, "exact_match", "last") == 1.0);
  const std::vector<Json> samples = samples_json(result);
  REQUIRE(samples.size() == 4);
  CHECK(samples[1]["filter"] == "strict");
  CHECK(samples[1]["filtered_resps"] == Json::array({"4"}));
  CHECK(samples[1]["exact_match"] == 0.0);
  CHECK(samples[3]["filter"] == "last");
  CHECK(samples[3]["exact_match"] == 1.0);
  CHECK(samples[3]["arguments"]["gen_args_0"]["arg_1"]["until"] == Json({"Q:", "END"}));
  CHECK_THAT(results_table({&result, 1}), Catch::Contains("|strict|     0|exact_match|"));
}

TEST_CASE("generate_until: --gen-kwargs change a task's settings", "[eval]") {
  const TextFile file("sums.jsonl", R"({"q":"1","a":"2"})"
                                    "\n");
  TableModel model;
  EvalOptions options = options_for(file);
  options.generation = parse_generation_option("temperature=0.5,top_p=0.9,max_gen_toks=3,until=x");
  evaluate(parse_task(kGeneration, "t"), model, options);
  CHECK(model.generate_requests[0].stop == std::vector<std::string>{"x"});
  CHECK(model.generate_requests[0].max_new_tokens == 3);
  CHECK(model.generate_requests[0].temperature == 0.5);
  CHECK(model.generate_requests[0].top_p == 0.9);
  options.generation = parse_generation_option(R"({"until": ["a", "b"], "temperature": 0.5, "do_sample": false})");
  evaluate(parse_task(kGeneration, "t"), model, options);
  CHECK(model.generate_requests[0].stop == std::vector<std::string>{"a", "b"});
  CHECK(model.generate_requests[0].temperature == 0.0);
  for (const char* wrong : {"", "temperature", "=1", "temperature=hot", "max_gen_toks=0", "until={}",
                            "{\"until\": [1]}", "{\"a\"", "beams=2", "top_p=1.5", "do_sample=perhaps"})
    CHECK_THROWS_AS(parse_generation_option(wrong), ConfigError);
  CHECK_THROWS_WITH(parse_generation_option("temperatur=1"),
                    "--gen-kwargs: unknown key 'temperatur'; did you mean 'temperature'?");
}

const std::string kContexts = R"(task: gap
dataset_path: gap.jsonl
preprocess: winogrande
doc_to_choice: ["{{contexts}}"]
doc_to_continuation: "{{ending}}"
doc_to_target: "{{answer}}"
target_labels: ["1", "2"]
metrics: [acc]
)";

TEST_CASE("multiple choice: choices can be the prompts of one continuation", "[eval]") {
  const TextFile file("gap.jsonl", R"({"sentence":"The _ is big.","option1":"cat","option2":"dog","answer":"2"})"
                                   "\n");
  const TextFile pool("pool.jsonl", R"({"sentence":"My _ ran.","option1":"hat","option2":"cow","answer":"2"})"
                                    "\n");
  TableModel model;
  EvalOptions options = options_for(file);
  options.num_fewshot = 1;
  options.fewshot_pools["gap"] = {pool.path(), {}};
  const TaskResult result = evaluate(parse_task(kContexts, "t"), model, options);
  REQUIRE(model.requests.size() == 2);
  CHECK(model.requests[0].context == "My cow ran.\n\nThe cat");
  CHECK(model.requests[1].context == "My cow ran.\n\nThe dog");
  CHECK(model.requests[0].continuation == " is big.");
  CHECK(samples_json(result)[0]["target"] == "is big.");
  CHECK(metric_of(result, "acc") == 0.0);  // a tie goes to the first, which is wrong
}

TEST_CASE("multiple choice: acc_mutual_info asks every choice alone too", "[eval]") {
  const TextFile file("mine.jsonl", R"({"q":"x","a":"yes","b":"no","label":1})"
                                    "\n");
  TableModel model;
  const std::string task =
      "task: mine\ndataset_path: mine.jsonl\ndoc_to_text: \"{{q}}\"\ndoc_to_choice: [\"{{a}}\", \"{{b}}\"]\n"
      "doc_to_target: \"{{label}}\"\nmetrics: [acc, acc_mutual_info, exact_match]\n";
  const TaskResult result = evaluate(parse_task(task, "t"), model, options_for(file));
  REQUIRE(model.requests.size() == 4);
  CHECK(model.requests[2].context.empty());
  CHECK(model.requests[2].continuation == " yes");
  CHECK(result.samples[0].answers.scores.size() == 4);
  CHECK(metric_of(result, "exact_match") == 0.0);
}

TEST_CASE("multiple choice: a target may be the text of a choice", "[eval]") {
  const TextFile file("mine.jsonl", R"({"q":"x","answer":"B"})"
                                    "\n");
  TableModel model;
  model.log_probs = {{" B", -0.1}};
  const std::string task =
      "task: mine\ndataset_path: mine.jsonl\ndoc_to_text: \"{{q}}\"\ndoc_to_choice: [\"A\", \"B\"]\n"
      "doc_to_target: \"{{answer}}\"\nmetrics: [acc]\n";
  const TaskResult result = evaluate(parse_task(task, "t"), model, options_for(file));
  CHECK(samples_json(result)[0]["target"] == "B");
  CHECK(metric_of(result, "acc") == 1.0);
}

TEST_CASE("engine: what answering took stands in results.json", "[eval]") {
  class Counting : public TableModel {
   public:
    EngineCounts counts() const override {
      const auto asked = static_cast<std::int64_t>(requests.size());
      return {.tokens_requested = 100 + 10 * asked, .tokens_computed = 50 + 5 * asked, .rows_scored = asked};
    }
  };
  const TextFile file("last.jsonl", R"({"text":"one two"})"
                                    "\n");
  Counting model;
  const TaskResult result = evaluate(parse_task(kContinuation, "t"), model, options_for(file));
  const Json engine = results_json({&result, 1}, {}, {}, {})["engine"]["last"];
  CHECK(engine["tokens_requested"] == 10);
  CHECK(engine["tokens_computed"] == 5);
  CHECK(engine["rows_scored"] == 1);
}

}  // namespace
}  // namespace dagmoe
