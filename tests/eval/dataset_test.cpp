#include "eval/dataset.h"

#include "base/error.h"
#include "eval/json_list.h"
#include "eval/table_file.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Texts = std::vector<std::string>;

std::string problems_of(const RecordProblems& problems) {
  try {
    problems.throw_if_any();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

std::vector<Document> documents_in(const TextFile& file, const TaskConfig& task,
                                   DatasetFormat format = DatasetFormat::kJsonl) {
  RecordProblems problems(file.path());
  std::vector<Document> documents = read_documents(task, format, file.path(), problems);
  problems.throw_if_any();
  return documents;
}

TEST_CASE("csv: cells in quotes hold commas, quotes and line feeds", "[eval]") {
  RecordProblems problems("x.csv");
  // As Python's csv.reader reads it.
  const auto rows = parse_csv("a,\"b,\"\"c\"\"\nd\",e\r\n\r\n\"f\"g, h ,\n\"\"\n", problems);
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].cells == Texts{"a", "b,\"c\"\nd", "e"});
  CHECK(rows[0].line == 1);
  CHECK(rows[1].cells == Texts{"fg", " h ", ""});
  CHECK(rows[1].line == 4);
  CHECK(problems_of(problems).empty());
  parse_csv("a,b\nc,\"d\ne", problems);
  CHECK(problems_of(problems) == "x.csv:2: a quote is never closed");
}

TEST_CASE("table: rows of another width and broken text are named by line", "[eval]") {
  TaskConfig task;
  task.columns = {"q", "a"};
  CHECK(documents_in(TextFile("t.csv", "\xEF\xBB\xBFx,y\nz,w\n"), task)[1].doc.dump() == R"({"q":"z","a":"w"})");
  CHECK(documents_in(TextFile("t.tsv", "x\t\"y\r\n"), task)[0].doc.dump() == R"({"q":"x","a":"\"y"})");
  task.columns.clear();
  CHECK(documents_in(TextFile("t.csv", "k,l\n1,2\n"), task)[0].doc.dump() == R"({"k":"1","l":"2"})");
  task.columns = {"q", "a"};
  CHECK_THROWS_WITH(documents_in(TextFile("t.csv", "x,y\nz\nu,\xFF\n"), task),
                    Catch::Contains("t.csv:2: found 1 cells, expected 2: q, a") &&
                        Catch::Contains("t.csv:3: column 'a': the text is not valid UTF-8"));
}

TEST_CASE("json: a list inside an object is cut into its items with their lines", "[eval]") {
  const std::string text =
      "{\"canary\": \"a, [b\\\"\", \"n\": [1, {\"examples\": [7]}],\n \"examples\": [\n  {\"x\": \"]},{\"},\n\n "
      "{\"x\": 2}\n]}";
  const auto items = json_list_items(text, "examples", "f.json");
  REQUIRE(items.size() == 2);
  CHECK(items[0].text == "{\"x\": \"]},{\"}");
  CHECK(items[0].line == 3);
  CHECK(items[1].line == 5);
  CHECK(json_list_items("{\"examples\": [ ]}", "examples", "f").empty());
  CHECK_THROWS_WITH(json_list_items("{\"examples\": 3}", "examples", "f"),
                    "f:1: expected an object with a list 'examples'");
  CHECK_THROWS_WITH(json_list_items("{\"examples\": [1,\n2", "examples", "f"),
                    "f:2: the list 'examples' is never closed");
  TaskConfig task;
  task.records_field = "examples";
  CHECK_THROWS_WITH(
      documents_in(TextFile("t.json", "{\"examples\": [\n{\"a\": 1},\n{\"a\" 2}, 3]}"), task),
      Catch::Contains("t.json:3: the record") && Catch::Contains("t.json:3: found number, expected an object"));
}

TEST_CASE("wikitext: a first-level title begins a page and a deeper one does not", "[eval]") {
  TaskConfig task;
  task.preprocess = Preprocess::kWikitext;
  const auto pages =
      documents_in(TextFile("w.txt", " \n = One = \n \n text \n = = Part = = \n more \n = Two = \n"), task);
  REQUIRE(pages.size() == 2);
  CHECK(pages[0].doc["page"] == " = One = \n \n text \n = = Part = = \n more ");
  CHECK(pages[0].line == 2);
  CHECK(pages[1].doc["page"] == " = Two = \n");
  CHECK(pages[1].line == 7);
}

TEST_CASE("bbh: a prompt file is its description and three examples", "[eval]") {
  const TextFile file("p.txt",
                      "canary\n-----\nSort.\nWell.\n\nQ: one\ntwo\nA: Let's think step by step.\nFirst.\n\nThen. So "
                      "the answer is a.\n\nQ: "
                      "b\nA: Let's think step by step. Inline.");
  const auto examples = documents_in(file, {}, DatasetFormat::kBbhPrompt);
  REQUIRE(examples.size() == 2);
  CHECK(examples[0].doc == Json({{"input", "one\ntwo"},
                                 {"target", "First.\n\nThen. So the answer is a."},
                                 {"description", "Sort.\nWell."}}));
  CHECK(examples[1].doc["target"] == "Inline.");
  CHECK(examples[1].line == 13);
  CHECK_THROWS_WITH(documents_in(TextFile("p.txt", "nothing"), {}, DatasetFormat::kBbhPrompt),
                    Catch::Contains("p.txt:1: expected a line '-----'"));
}

}  // namespace
}  // namespace dagmoe
