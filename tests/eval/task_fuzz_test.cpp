// Task files and records with bytes changed, cut and copied: whatever they hold, the answer is a result or a message
// for people (ConfigError, InputError), records with file and line. Deterministic.
#include <algorithm>
#include <random>
#include <regex>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "eval/evaluate.h"
#include "eval/task_catalog.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

/// Changes texts at random places.
class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}
  std::string mutate(std::string text) {
    for (std::size_t i = 0, count = 1 + below(3); i < count && !text.empty(); ++i) change(text);
    return text;
  }

 private:
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  void change(std::string& text) {
    static const std::vector<std::string> kPieces = {
        "{{",       "}}",    "\"",   "\\",   "[",          "]", "{",           "}",   ":",     ",",
        "\n",       "\n\n",  " ",    "\t",   "- ",         "#", "null",        "-1",  "1e999", "9999999999999999999999",
        "0",        "\xFF",  "\xC3", "é",    "${variant}", "*", ".",           "|",   "'",     std::string("\0", 1),
        "&a",       "!!x",   "(",    ")",    "+",          "?", "_",           "acc", "----",  "\r",
        "question", "label", "true", "[[[[", "| strip",    "<", "\xEF\xBB\xBF"};
    const std::size_t place = below(text.size()), length = 1 + below(std::min<std::size_t>(24, text.size() - place));
    switch (below(5)) {
      case 0:
        text.erase(place, length);
        break;
      case 1:
        text.insert(place, kPieces[below(kPieces.size())]);
        break;
      case 2:
        text.replace(place, length, kPieces[below(kPieces.size())]);
        break;
      case 3:
        text[place] = static_cast<char>(below(256));
        break;
      default:
        text.insert(below(text.size()), text.substr(place, length));
    }
  }

  std::mt19937_64 random_;
};

std::filesystem::path tasks() { return std::filesystem::path(DAGMOE_SOURCE_DIR) / "eval" / "tasks"; }

TEST_CASE("fuzz: a changed task file is read or refused with its places", "[eval]") {
  Mutator mutator(1);
  const TaskCatalog catalog(tasks());
  std::map<std::filesystem::path, std::string> texts;
  for (const auto& [name, place] : catalog.tasks)
    texts[place.file] = with_variant(std::string(MappedFile::open(place.file)->text()), place.variant);
  int refused = 0, count = 0;
  for (const auto& [file, text] : texts) {
    for (int i = 0; i < 120; ++i, ++count) {
      const std::string changed = mutator.mutate(text);
      try {
        parse_task(changed, "x.yaml");
      } catch (const ConfigError& error) {
        ++refused;
        for (const std::string& issue : error.issues()) {
          INFO(changed);
          CHECK_THAT(issue, Catch::StartsWith("x.yaml:"));
        }
      }
    }
  }
  CHECK(count >= 2000);
  CHECK(refused > count / 5);
}

TEST_CASE("fuzz: a changed group or suite is read or refused", "[eval]") {
  Mutator mutator(2);
  for (const char* name : {"mmlu_stem.yaml", "bbh.yaml", "paper.yaml"}) {
    const std::string text(MappedFile::open(tasks() / name)->text());
    for (int i = 0; i < 100; ++i) {
      const TextFile file("changed.yaml", mutator.mutate(text));
      try {
        check_task_file(file.path());
      } catch (const ConfigError&) {
      } catch (const InputError&) {
      }
    }
  }
}

struct Data {
  const char *task, *file, *text;
};

// One or two good records in each layout.
const std::vector<Data> kData = {
    {"arc_easy", "a.jsonl",
     "{\"id\":\"1\",\"question\":{\"stem\":\"Why?\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"},{\"text\":\"b\","
     "\"label\":\"B\"}]},\"answerKey\":\"B\"}\n"},
    {"piqa", "a.jsonl",
     "{\"goal\":\"go\",\"sol1\":\"a\",\"sol2\":\"b\",\"label\":1}\n{\"goal\":\"no\",\"sol1\":\"a\",\"sol2\":\"b\","
     "\"label\":0}\n"},
    {"hellaswag", "a.jsonl",
     "{\"ctx_a\":\"A man sits. \",\"ctx_b\":\"he "
     "stands\",\"activity_label\":\"Roof\",\"label\":\"1\",\"endings\":[\"u\",\"d\",\"a\",\"b\"]}\n"},
    {"hellaswag", "a.txt", "ctx\n0\na\nb\nc\nd\nctx\n3\na\nb\nc\nd\n"},
    {"winogrande", "a.jsonl",
     "{\"qID\":\"1\",\"sentence\":\"The _ ran.\",\"option1\":\"cat\",\"option2\":\"dog\",\"answer\":\"2\"}\n"},
    {"openbookqa", "a.jsonl",
     "{\"id\":\"8\",\"question\":{\"stem\":\"S\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"},{\"text\":\"b\","
     "\"label\":\"B\"}]},\"answerKey\":\"B\"}\n"},
    {"openbookqa", "a.tsv",
     "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n7\tWhy\t(A) x (B) y (C) z (D) w\tq\tA\n"},
    {"sciq", "a.json",
     "[{\"question\":\"q\",\"distractor3\":\"c\",\"distractor1\":\"a\",\"distractor2\":\"b\",\"correct_answer\":\"d\","
     "\"support\":\" s\"}]"},
    {"boolq", "a.jsonl",
     "{\"question\":\"q\",\"passage\":\"p\",\"idx\":0,\"label\":true}\n{\"question\":\"q\",\"passage\":\"p\",\"idx\":1,"
     "\"label\":\"false\"}\n"},
    {"copa", "a.jsonl",
     "{\"premise\":\"It rained.\",\"choice1\":\"A\",\"choice2\":\"B\",\"question\":\"cause\",\"label\":0,\"idx\":3}\n"},
    {"commonsense_qa", "a.jsonl",
     "{\"answerKey\":\"A\",\"id\":\"1\",\"question\":{\"question_concept\":\"x\",\"choices\":[{\"label\":\"A\","
     "\"text\":\"b\"},{\"label\":\"B\",\"text\":\"c\"},{\"label\":\"C\",\"text\":\"d\"},{\"label\":\"D\",\"text\":"
     "\"e\"},{\"label\":\"E\",\"text\":\"f\"}],\"stem\":\"S?\"}}\n"},
    {"social_iqa", "a.json",
     "[{\"instruction\":\"Please choose the correct answer to the question: A b. What now?\\n\\nAnswer1: x Answer2: y "
     "Answer3: z\\n\\nAnswer format: answer1/answer2/answer3\",\"answer\":\"answer3\"}]"},
    {"lambada_openai", "a.jsonl", "{\"text\":\"one two\"}\n{\"context\":\"a b\",\"continuation\":\"c\"}\n"},
    {"mmlu_anatomy", "a.csv", "\"What, is \"\"it\"\"?\",a,b,\"c\nd\",e,B\nq,a,b,c,d,D\n"},
    {"gpqa_main_zeroshot", "a.csv",
     "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nq,a,b,c,\nq,\"a\nb\",b,c,d\n"},
    {"bbh_cot_fewshot_navigate", "a.json",
     "{\"canary\": \"x\",\n \"examples\": [\n  {\"input\": \"i\", \"target\": \"t\"},\n  {\"input\": \"j\", "
     "\"target\": \"Yes\"}\n]}\n"},
    {"gsm8k", "a.jsonl", "{\"question\":\"q\",\"answer\":\"a #### 3\"}\n"},
    {"wikitext", "a.txt", "\n = One = \n \n a , b \n = Two = \n = = x = = \n c ( d ) \n"},
    {"valid_loss", "a.jsonl", "{\"instruction\":\"a\",\"output\":\"b\"}\n"},
};
constexpr const char* kPrompt =
    "canary\n-----\nDo it.\n\nQ: one\nA: Let's think step by step.\nSo 1.\n\nQ: two\nA: Let's think step by step.\nSo "
    "2.\n\nQ: "
    "three\nA: Let's think step by step.\nSo 3.\n";

TaskConfig task_named(const std::string& name) {
  const TaskCatalog catalog(tasks());
  const TaskCatalog::Place& place = catalog.tasks.at(name);
  return read_task(place.file, place.variant);
}

EvalOptions options_for(const TaskConfig& task, const TextFile& data, const TextFile& prompt) {
  EvalOptions options;
  options.datasets[task.task] = {data.path(), {}};
  options.fewshot_pools[task.task] = {prompt.path(), {}};
  options.num_fewshot = task.fewshot_format == DatasetFormat::kBbhPrompt ? 3 : 0;
  return options;
}

TEST_CASE("fuzz: the records it begins with are good", "[eval]") {
  const TextFile prompt("prompt.txt", kPrompt);
  for (const Data& data : kData) {
    CAPTURE(data.task, data.file);
    const TextFile file(data.file, data.text);
    const TaskConfig task = task_named(data.task);
    TableModel model;
    CHECK_NOTHROW(evaluate(task, model, options_for(task, file, prompt)));
  }
}

TEST_CASE("fuzz: changed records are scored or refused with file and line", "[eval]") {
  const TextFile prompt("prompt.txt", kPrompt);
  Mutator mutator(3);
  int refused = 0, count = 0;
  for (const Data& data : kData) {
    const TaskConfig task = task_named(data.task);
    for (int i = 0; i < 120; ++i, ++count) {
      const TextFile file(data.file, mutator.mutate(data.text));
      TableModel model;
      try {
        evaluate(task, model, options_for(task, file, prompt));
      } catch (const InputError& error) {
        ++refused;
        const std::string message = error.what();
        const bool has_place =
            std::regex_search(message, std::regex("^[^\n]*" + std::string(data.file) + "(:[0-9]+)?: "));
        INFO(data.task << ": " << message);
        CHECK(has_place);
        CHECK((message.find(std::string(data.file) + ":") != std::string::npos));
      } catch (const NumericsError&) {
        CHECK(std::string(data.task) == "valid_loss");  // no supervised token is left
      }
    }
  }
  CHECK(count >= 2000);
  CHECK(refused > count / 5);
}

TEST_CASE("fuzz: changed examples of BIG-Bench Hard are used or refused with file and line", "[eval]") {
  const TextFile data("a.json", "{\"examples\": [{\"input\": \"i\", \"target\": \"t\"}]}");
  const TaskConfig task = task_named("bbh_cot_fewshot_navigate");
  Mutator mutator(4);
  for (int i = 0; i < 300; ++i) {
    const TextFile prompt("prompt.txt", mutator.mutate(kPrompt));
    TableModel model;
    try {
      evaluate(task, model, options_for(task, data, prompt));
    } catch (const InputError& error) {
      CHECK_THAT(error.what(), Catch::Contains("prompt.txt:"));
    } catch (const ConfigError& error) {
      CHECK_THAT(error.what(), Catch::Contains("few-shot examples need a file of"));
    }
  }
}

}  // namespace
}  // namespace dagmoe
