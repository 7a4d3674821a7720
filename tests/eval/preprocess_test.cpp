#include "eval/preprocess.h"

#include "base/error.h"
#include "data/unicode.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

Json doc_of(Preprocess kind, const Json& record) { return Preprocessor(kind, "", 0)(record).doc; }
Json view_of(Preprocess kind, const Json& record) { return Preprocessor(kind, "", 0)(record).view; }

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
  CHECK(doc_of(Preprocess::kArc, record).dump() == expected.dump());
  CHECK(doc_of(Preprocess::kArc, expected).dump() == expected.dump());
}

TEST_CASE("arc: a record of another layout is refused with its field", "[eval]") {
  const auto refuse = [](const char* text, const char* message) {
    CHECK_THROWS_WITH(doc_of(Preprocess::kArc, parse_json(text, "test")), message);
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
  const Json doc = doc_of(Preprocess::kHellaswag, record);
  CHECK(doc["query"] == "Roof : A man sits. He stands");
  CHECK(doc["choices"] == Json({"up.", " down now.", "a", "b"}));
  CHECK(doc["gold"] == 1);
  CHECK(doc["label"] == "1");
}

TEST_CASE("hellaswag: a record without a usable label is refused", "[eval]") {
  Json record = parse_json(R"({"ctx_a":"a","ctx_b":"b","activity_label":"c","endings":["x","y"],"label":""})", "test");
  CHECK_THROWS_WITH(doc_of(Preprocess::kHellaswag, record),
                    "field 'label': found \"\", expected the index of an ending");
  record.erase("label");
  CHECK_THROWS_WITH(doc_of(Preprocess::kHellaswag, record), "field 'label' is missing");
  record["endings"] = "x";
  CHECK_THROWS_WITH(doc_of(Preprocess::kHellaswag, record), "field 'endings': found string, expected a list");
}

TEST_CASE("winogrande: the sentence is cut at its gap", "[eval]") {
  const Json record = parse_json(
      R"({"sentence":"Ann met Eve because _ was  early. ","option1":"Ann","option2":"Eve","answer":"2"})", "t");
  const Json view = view_of(Preprocess::kWinogrande, record);
  CHECK(view["contexts"] == Json({"Ann met Eve because Ann", "Ann met Eve because Eve"}));
  CHECK(view["ending"] == "was  early.");
  CHECK(doc_of(Preprocess::kWinogrande, record) == record);
  CHECK_THROWS_WITH(doc_of(Preprocess::kWinogrande, Json({{"sentence", "x"}})),
                    "field 'sentence': has no '_' where the options go");
}

TEST_CASE("copa: the premise loses its stop and choices begin small", "[eval]") {
  const Json record = parse_json(
      R"({"premise":" It rained. ","choice1":"Water fell.","choice2":"Élan rose.","question":"effect","label":0})",
      "t");
  const Json view = view_of(Preprocess::kCopa, record);
  CHECK(view["prompt"] == "It rained therefore");
  CHECK(view["choices"] == Json({" water fell.", " élan rose."}));
  CHECK(view["target"] == " water fell.");
}

TEST_CASE("lambada: the last word is what stands behind the last space", "[eval]") {
  const Json view = view_of(Preprocess::kLambada, Json({{"text", "He saw the  sign\nand"}}));
  CHECK(view["context"] == "He saw the ");
  CHECK(view["last_word"] == " sign\nand");
  CHECK(doc_of(Preprocess::kLambada, Json({{"context", "a b"}, {"continuation", "c"}})) == Json({{"text", "a b c"}}));
}

TEST_CASE("gpqa: choices are shuffled with CPython's generator from record to record", "[eval]") {
  // random.seed(0), and random.shuffle of the four for each record.
  Preprocessor prepare(Preprocess::kGpqa, "", 0);
  const Json record = {{"Incorrect Answer 1", "a"},
                       {"Incorrect Answer 2", "b  x"},
                       {"Incorrect Answer 3", nullptr},
                       {"Correct Answer", " d "}};
  const Json first = prepare(record).doc, second = prepare(record).doc;
  CHECK(first["choice1"] == " ");
  CHECK(first["choice2"] == "a");
  CHECK(first["choice3"] == "b x");
  CHECK(first["choice4"] == "d");
  CHECK(first["answer"] == "(D)");
  CHECK(second["choice1"] == "a");
  CHECK(second["choice2"] == "b x");
  CHECK(second["choice3"] == "d");
  CHECK(second["choice4"] == " ");
  CHECK(second["answer"] == "(C)");
}

TEST_CASE("openbookqa: a table's cell holds all choices", "[eval]") {
  const Json record = {{"ID", "7"},
                       {"Question Stem", "Why?"},
                       {"Choices", "(A) some (B) tea (C) or (D) milk (hot) tea"},
                       {"Answer Key", "B"}};
  CHECK(
      doc_of(Preprocess::kOpenbookqa, record).dump() ==
      R"({"id":"7","question_stem":"Why?","choices":{"text":["some","tea","or","milk (hot) tea"],"label":["A","B","C","D"]},"answerKey":"B"})");
}

TEST_CASE("mmlu: a row of six columns becomes Hugging Face's record", "[eval]") {
  const Json row = {{"question", "Q"}, {"A", "w"}, {"B", "x"}, {"C", "y"}, {"D", "z"}, {"answer", "C"}};
  CHECK(Preprocessor(Preprocess::kMmlu, "anatomy", 0)(row).doc.dump() ==
        R"({"question":"Q","subject":"anatomy","choices":["w","x","y","z"],"answer":2})");
}

TEST_CASE("social_iqa: an instruction is taken apart", "[eval]") {
  const Json record = {
      {"instruction",
       "Please choose the correct answer to the question: Tracy stayed. What now?\n\nAnswer1: a plan Answer2: go "
       "home Answer3: rest\n\nAnswer format: answer1/answer2/answer3"},
      {"answer", "answer3"}};
  CHECK(
      doc_of(Preprocess::kSocialIqa, record).dump() ==
      R"({"context":"Tracy stayed.","question":"What now?","answerA":"a plan","answerB":"go home","answerC":"rest","label":"3"})");
}

TEST_CASE("wikitext: the detokeniser is lm-evaluation-harness's", "[eval]") {
  // Made by lm_eval/tasks/wikitext/preprocess_wikitext.py.
  CHECK(wikitext_detokenized(" \n = = Dogs ' bones = = \n \n The dogs ' 3 @,@ 000 toys ( \x1c"
                             " red ) cost 1 @.@ 5 @-@ 2 ; \" a  b \" said [ x ] { y } N times : it 's 5 ° C ! \n Why ? "
                             "He , ' no ' . = = = x = = = \n") ==
        "\n== Dogs'bones ==\n\nThe dogs' 3,000 toys (red) cost 1.5-2; \"a  b\" said [x] {y} 1 times: it's 5°C!\nWhy? "
        "He,' no '. === x ===\n");
}

}  // namespace
}  // namespace dagmoe
