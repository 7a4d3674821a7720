#include "eval/questions.h"

#include "base/error.h"
#include "base/text.h"
#include "eval/task_catalog.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Texts = std::vector<std::string>;

TaskConfig task_named(const std::string& name) {
  return read_task(std::filesystem::path(DAGMOE_SOURCE_DIR) / "eval" / "tasks" / (name + ".yaml"));
}

std::vector<Question> questions_of(const std::string& task, const TextFile& file) {
  return read_questions(task_named(task), {file.path(), {}});
}

std::string problems_of(const std::string& task, const TextFile& file) {
  try {
    questions_of(task, file);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("questions: ARC's labels are letters or digits and its choices three to five", "[eval]") {
  const TextFile file(
      "arc.jsonl",
      R"({"id":"1","question":{"stem":"Why?","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"},{"text":"c","label":"C"}]},"answerKey":"C"})"
      "\n"
      R"({"id":"2","question":{"stem":"Who?","choices":[{"text":"w","label":"1"},{"text":"x","label":"2"},{"text":"y","label":"3"},{"text":"z","label":"4"}]},"answerKey":"2"})"
      "\n");
  const auto questions = questions_of("arc_easy", file);
  REQUIRE(questions.size() == 2);
  CHECK(questions[0].text == "Question: Why?\nAnswer:");
  CHECK(questions[0].choices == Texts{"a", "b", "c"});
  CHECK(questions[0].gold == 2);
  CHECK(questions[1].gold == 1);
  CHECK(questions[1].target == "1");
  CHECK(questions[1].line == 2);
}

TEST_CASE("questions: PIQA's label stands in the record or in a labels file", "[eval]") {
  const TextFile inside("piqa.jsonl", R"({"goal":"go","sol1":"a","sol2":"b","label":1})"
                                      "\n");
  CHECK(questions_of("piqa", inside).front().gold == 1);
  const TextFile outside("piqa.jsonl", R"({"goal":"go","sol1":"a","sol2":"b"})"
                                       "\r\n"
                                       R"({"goal":"no","sol1":"a","sol2":"b"})"
                                       "\r\n");
  const TextFile labels("piqa.lst", "1\r\n0\r\n");
  const auto questions = read_questions(task_named("piqa"), {outside.path(), labels.path()});
  REQUIRE(questions.size() == 2);
  CHECK(questions[0].gold == 1);
  CHECK(questions[0].doc.dump() == R"({"goal":"go","sol1":"a","sol2":"b","label":1})");
  CHECK(questions[1].gold == 0);
}

TEST_CASE("questions: a labels file of another length or with other text is refused", "[eval]") {
  const TextFile records("piqa.jsonl", R"({"goal":"go","sol1":"a","sol2":"b"})"
                                       "\n");
  const TextFile two("two.lst", "1\n0\n"), word("word.lst", "one\n");
  CHECK_THROWS_WITH(read_questions(task_named("piqa"), {records.path(), two.path()}),
                    str(two.name(), ": found 2 labels, expected 1, one for each record of ", records.name()));
  CHECK_THROWS_WITH(read_questions(task_named("piqa"), {records.path(), word.path()}),
                    word.name() + ":1: found 'one', expected an integer");
}

TEST_CASE("questions: HellaSwag's text form is used verbatim", "[eval]") {
  const TextFile file("val.txt", "Roof: A man  [x] sits. he\n3\na\n b\nc\nd [y]\nBoat: \n0\ne\nf\ng\nh");
  const auto questions = questions_of("hellaswag", file);
  REQUIRE(questions.size() == 2);
  CHECK(questions[0].text == "Roof: A man  [x] sits. he");
  CHECK(questions[0].choices == Texts{"a", " b", "c", "d [y]"});
  CHECK(questions[0].gold == 3);
  CHECK(questions[1].text == "Boat: ");
  CHECK(questions[1].line == 7);
}

TEST_CASE("questions: a damaged HellaSwag text names its lines", "[eval]") {
  CHECK(problems_of("hellaswag", TextFile("val.txt", "ctx\n0\na\nb\nc\nd\nctx\n"))
            .ends_with(":7: found 1 lines of a last document, expected 6: context, gold, four endings"));
  CHECK(problems_of("hellaswag", TextFile("val.txt", "ctx\nzero\na\nb\nc\nd\n"))
            .ends_with(":2: found 'zero', expected the gold ending's index"));
  CHECK(problems_of("hellaswag", TextFile("val.txt", "ctx\n0\na\nb\xFF\nc\nd\n"))
            .ends_with(":4: the line is not valid UTF-8"));
  CHECK_THAT(problems_of("arc_easy", TextFile("val.txt", "ctx\n0\na\nb\nc\nd\n")),
             Catch::EndsWith("task 'arc_easy' reads JSON lines; the text forms are those of HellaSwag and WikiText"));
}

TEST_CASE("questions: every bad record of a file is reported with its line", "[eval]") {
  const TextFile file("arc.jsonl", R"({"question":"Q","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"A"})"
                                   "\n"
                                   R"({"question":"Q","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"E"})"
                                   "\n\n"
                                   R"({"question":"Q","choices":{"text":["a"],"label":["A"]},"answerKey":"A"})"
                                   "\n"
                                   R"({"question":"Q","choices":{"text":["a","b"],"label":["A"]},"answerKey":"A"})"
                                   "\n"
                                   R"({"question":"Q","choices":{"text":["a","b"]},"answerKey":"A"})"
                                   "\n");
  CHECK(problems_of("arc_easy", file) == str(file.name(),
                                             ":2: the target is 'E', expected one of the labels A, B\n",  //
                                             file.name(), ":4: found 1 choices, expected two or more\n",  //
                                             file.name(), ":5: found 1 labels for 2 choices\n",           //
                                             file.name(), ":6: field 'choices.label' is missing"));
}

TEST_CASE("questions: broken JSON is reported with its line", "[eval]") {
  const TextFile file("piqa.jsonl", R"({"goal":"go","sol1":"a","sol2":"b","label":1})"
                                    "\n{\"goal\": \n[1]\n");
  const std::string problems = problems_of("piqa", file);
  CHECK_THAT(problems, Catch::Contains(file.name() + ":2: ") && Catch::Contains(file.name() + ":3: "));
}

TEST_CASE("questions: at most twenty bad records are listed and the rest counted", "[eval]") {
  std::string text;
  for (int i = 0; i < 25; ++i)
    text += R"({"goal":"go","sol1":"a","sol2":"b"})"
            "\n";
  const std::string problems = problems_of("piqa", TextFile("piqa.jsonl", text));
  CHECK_THAT(problems, Catch::Contains(":20: field 'label' is missing") && !Catch::Contains(":21: "));
  CHECK_THAT(problems, Catch::Contains("and 5 more bad records in "));
  CHECK_THAT(problems, Catch::EndsWith("labels in a file of their own are given as piqa=FILE,LABELS"));
}

TEST_CASE("questions: a gold index outside the choices is kept, to be counted as wrong", "[eval]") {
  const TextFile file("piqa.jsonl", R"({"goal":"go","sol1":"a","sol2":"b","label":-1})"
                                    "\n");
  CHECK(questions_of("piqa", file).front().gold == -1);
  CHECK_THAT(problems_of("piqa", TextFile("p.jsonl", R"({"goal":"go","sol1":"a","sol2":"b","label":"one"})")),
             Catch::EndsWith(":1: the target is 'one', expected an index from 0 to 1 or the text of a choice\nlabels "
                             "in a file of their own "
                             "are given as piqa=FILE,LABELS"));
}

TEST_CASE("questions: an empty file is an error", "[eval]") {
  CHECK_THAT(problems_of("piqa", TextFile("piqa.jsonl", "\n\n")), Catch::EndsWith("piqa.jsonl: no records"));
  CHECK_THAT(problems_of("hellaswag", TextFile("val.txt", "")), Catch::EndsWith("val.txt: no records"));
}

TEST_CASE("questions: the data sets of the repository can be read", "[eval]") {
  const auto data = std::filesystem::path(DAGMOE_SOURCE_DIR) / "datasets";
  for (const std::string& name : Texts{"arc_easy", "arc_challenge", "piqa", "hellaswag"}) {
    const TaskConfig task = task_named(name);
    const DatasetFiles files{data / task.dataset_path, task.labels_path.empty() ? "" : data / task.labels_path};
    CHECK(read_questions(task, files).size() >= 70);
  }
  const TaskConfig task = task_named("valid_loss");
  CHECK(read_loss_samples(task, {data / task.dataset_path, {}}, "").size() == 46);
}

TEST_CASE("loss samples: a record that lacks a field is reported with its line", "[eval]") {
  const TextFile file("valid.jsonl", R"({"instruction":"a","output":"b"})"
                                     "\n"
                                     R"({"instruction":"a"})"
                                     "\n");
  try {
    read_loss_samples(task_named("valid_loss"), {file.path(), {}}, "");
    FAIL("nothing was thrown");
  } catch (const InputError& error) {
    CHECK_THAT(error.what(), Catch::StartsWith(file.name() + ":2: field 'output' is missing"));
  }
}

}  // namespace
}  // namespace dagmoe
