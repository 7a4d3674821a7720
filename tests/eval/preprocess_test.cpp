#include "eval/preprocess.h"

#include "base/error.h"
#include "data/unicode.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

// Expected values are those of lm_eval/tasks/hellaswag/utils.py and of Python's str methods.

TEST_CASE("hellaswag: a title becomes a full stop and brackets go", "[eval]") {
  CHECK(hellaswag_clean("[header] How to sew [title] Pick a thread. [step] Use wool.") ==
        " How to sew. Pick a thread. Use wool.");
}

TEST_CASE("hellaswag: white space is stripped before brackets are deleted", "[eval]") {
  CHECK(hellaswag_clean("  a [b] \n") == "a ");
  CHECK(hellaswag_clean("\xC2\xA0\x1C"
                        "a\xE3\x80\x80") == "a");
}

TEST_CASE("hellaswag: two spaces become one, once", "[eval]") {
  CHECK(hellaswag_clean("a  b") == "a b");
  CHECK(hellaswag_clean("a   b") == "a  b");
  CHECK(hellaswag_clean("a    b") == "a  b");
}

TEST_CASE("hellaswag: a bracket that closes on another line stays", "[eval]") {
  CHECK(hellaswag_clean("a [b\nc] d [e] f") == "a [b\nc] d f");
  CHECK(hellaswag_clean("a [b [c] d] e") == "a d] e");
  CHECK(hellaswag_clean("a [b") == "a [b");
}

TEST_CASE("capitalize: the first letter rises and all others fall", "[eval]") {
  CHECK(python_capitalize("the Man in NEW york") == "The man in new york");
  CHECK(python_capitalize("") == "");
  CHECK(python_capitalize("1ABC") == "1abc");
  CHECK(python_capitalize(" aB") == " ab");
}

TEST_CASE("capitalize: a sharp s in front becomes Ss and one inside stays", "[eval]") {
  CHECK(python_capitalize("ßAß") == "Ssaß");
}

TEST_CASE("capitalize: letters beyond ASCII have their case too", "[eval]") {
  CHECK(python_capitalize("éCOLE Ünter") == "École ünter");
  CHECK(python_capitalize("žÁ÷ÿ") == "Žá÷ÿ");
  CHECK(python_capitalize("ÿ") == "Ÿ");
  CHECK(python_capitalize("жЖ ωΩ") == "Жж ωω");
}

TEST_CASE("white space: exactly Python's 29 code points count", "[eval]") {
  int count = 0;
  for (char32_t c = 0; c < 0x110000; ++c) count += is_python_space(c) ? 1 : 0;
  CHECK(count == 29);
  CHECK(is_python_space(0x1C));
  CHECK_FALSE(is_python_space(0x200B));
}

TEST_CASE("white space: bytes at the end are counted by whole characters", "[eval]") {
  CHECK(trailing_space_bytes("a \t\n") == 3);
  CHECK(trailing_space_bytes("a\xC2\xA0\xE3\x80\x80") == 5);
  CHECK(trailing_space_bytes("a\xE2\x80\x8B") == 0);
  CHECK(trailing_space_bytes("é") == 0);
  CHECK(trailing_space_bytes("  ") == 2);
  CHECK(trailing_space_bytes("") == 0);
}

TEST_CASE("arc: AI2's layout becomes Hugging Face's", "[eval]") {
  const Json record = parse_json(
      R"({"id":"x","question":{"stem":"Why?","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"}]},"answerKey":"B"})",
      "test");
  const Json expected = parse_json(
      R"({"id":"x","question":"Why?","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"B"})", "test");
  CHECK(preprocess_record(Preprocess::kArc, record).dump() == expected.dump());
  CHECK(preprocess_record(Preprocess::kArc, expected).dump() == expected.dump());
}

TEST_CASE("arc: a record of another layout is refused with its field", "[eval]") {
  const auto refuse = [](const char* text, const char* message) {
    CHECK_THROWS_WITH(preprocess_record(Preprocess::kArc, parse_json(text, "test")), message);
  };
  refuse(R"({"id":"x"})", "field 'question' is missing");
  refuse(R"({"question":3})", "field 'question': found number, expected an object or a text");
  refuse(R"({"question":{"stem":"Why?"}})", "field 'choices' is missing");
  refuse(R"({"question":{"stem":"Why?","choices":["a"]}})",
         "field 'question.choices': found an item that is string, expected an object");
  refuse(R"({"question":{"stem":"Why?","choices":[{"label":"A"}]}})", "field 'text' is missing");
}

TEST_CASE("hellaswag: query, choices and gold are added behind the record's fields", "[eval]") {
  const Json record = parse_json(
      R"({"ctx_a":"A man sits. ","ctx_b":"he STANDS","activity_label":"Roof [x]","label":"1","endings":["up.","[step] down  now.","a","b"]})",
      "test");
  const Json doc = preprocess_record(Preprocess::kHellaswag, record);
  CHECK(doc["query"] == "Roof : A man sits. He stands");
  CHECK(doc["choices"] == Json({"up.", " down now.", "a", "b"}));
  CHECK(doc["gold"] == 1);
  CHECK(doc["label"] == "1");
}

TEST_CASE("hellaswag: a record without a usable label is refused", "[eval]") {
  Json record = parse_json(R"({"ctx_a":"a","ctx_b":"b","activity_label":"c","endings":["x","y"],"label":""})", "test");
  CHECK_THROWS_WITH(preprocess_record(Preprocess::kHellaswag, record),
                    "field 'label': found \"\", expected the index of an ending");
  record.erase("label");
  CHECK_THROWS_WITH(preprocess_record(Preprocess::kHellaswag, record), "field 'label' is missing");
  record["endings"] = "x";
  CHECK_THROWS_WITH(preprocess_record(Preprocess::kHellaswag, record),
                    "field 'endings': found string, expected a list");
}

}  // namespace
}  // namespace dagmoe
