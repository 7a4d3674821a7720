#include "eval/text_template.h"

#include "base/error.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Texts = std::vector<std::string>;

const Json& document() {
  static const Json doc = parse_json(
      R"({"goal": "go", "n": 3, "flag": true, "nothing": null, "question": {"stem": "Why?", "choices": [{"text": "a"}, {"text": "b"}]}, "texts": ["x", "y"]})",
      "test");
  return doc;
}

std::string rendered(std::string_view text) { return TextTemplate(text).render(document()); }

TEST_CASE("template: fields are put into text", "[eval]") {
  CHECK(rendered("Question: {{goal}}\nAnswer:") == "Question: go\nAnswer:");
  CHECK(rendered("{{ goal }}{{goal}}") == "gogo");
  CHECK(rendered("no field {here}") == "no field {here}");
  CHECK(rendered("") == "");
}

TEST_CASE("template: dotted paths go into objects and lists", "[eval]") {
  CHECK(rendered("{{question.stem}}") == "Why?");
  CHECK(rendered("{{question.choices.1.text}}") == "b");
  CHECK(rendered("{{texts.0}}") == "x");
}

TEST_CASE("template: numbers and truth values are written as Python does", "[eval]") {
  CHECK(rendered("{{n}} {{flag}}") == "3 True");
}

TEST_CASE("template: a single field may give a list of texts", "[eval]") {
  CHECK(TextTemplate("{{texts}}").render_list(document()) == Texts{"x", "y"});
  CHECK(TextTemplate("{{question.choices.*.text}}").render_list(document()) == Texts{"a", "b"});
  CHECK(TextTemplate("{{goal}}").render_list(document()) == Texts{"go"});
  CHECK(TextTemplate("no").render_list(document()) == Texts{"no"});
}

TEST_CASE("template: what a record lacks is named", "[eval]") {
  CHECK_THROWS_WITH(rendered("{{gaol}}"), "field 'gaol' is missing");
  CHECK_THROWS_WITH(rendered("{{question.text}}"), "field 'question.text' is missing");
  CHECK_THROWS_WITH(rendered("{{texts.2}}"), "field 'texts.2' is missing");
  CHECK_THROWS_WITH(rendered("{{texts.-1}}"), "field 'texts.-1' is missing");
  CHECK_THROWS_WITH(rendered("{{goal.x}}"), "field 'goal.x' is missing");
  CHECK_THROWS_WITH(rendered("{{nothing}}"), "field 'nothing': found null, expected a text or a number");
  CHECK_THROWS_WITH(rendered("{{texts}}"), "field 'texts': found a list, expected a text or a number");
  CHECK_THROWS_WITH(rendered("{{texts.*}}"), "field 'texts.*': found 2 values, expected one");
  CHECK_THROWS_WITH(rendered("{{question}}"), "field 'question': found an object, expected a text or a number");
}

TEST_CASE("template: a star over records that lack the field is an error, not a shorter list", "[eval]") {
  const Json doc = parse_json(R"({"choices": [{"text": "a"}, {"label": "B"}]})", "test");
  CHECK_THROWS_WITH(TextTemplate("{{choices.*.text}}").render_list(doc), "field 'choices.*.text' is missing");
}

TEST_CASE("template: broken templates and expressions are refused", "[eval]") {
  CHECK_THROWS_WITH(TextTemplate("{{goal"), "'{{' is never closed");
  CHECK_THROWS_WITH(TextTemplate("{{}}"), Catch::StartsWith("'{{}}' is no field"));
  CHECK_THROWS_WITH(TextTemplate("{{choices.label.index(answerKey)}}"),
                    "'{{choices.label.index(answerKey)}}' is no field; found an expression, expected a dotted path "
                    "such as choices.*.text, perhaps with '| strip', '| lstrip' or '| rstrip'");
  CHECK_THROWS_WITH(TextTemplate("{% if x %}"), Catch::StartsWith("'{%' begins a Jinja statement"));
}

TEST_CASE("template: white space at the ends goes where that is asked", "[eval]") {
  const Json doc = {{"q", "\x1c a \xC2\xA0"}, {"list", {" x ", "y "}}};
  CHECK(TextTemplate("<{{q | strip}}>").render(doc) == "<a>");
  CHECK(TextTemplate("<{{q|lstrip}}>").render(doc) == "<a \xC2\xA0>");
  CHECK(TextTemplate("<{{ q | rstrip }}>").render(doc) == "<\x1c a>");
  CHECK(TextTemplate("{{list | strip}}").render_list(doc) == std::vector<std::string>{"x", "y"});
  CHECK_THROWS_AS(TextTemplate("{{q | upper}}"), ConfigError);
}

}  // namespace
}  // namespace dagmoe
