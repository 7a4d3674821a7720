#include "data/json_lines.h"

#include "base/error.h"
#include "base/text.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

// A file as one line a record: "2: name=text name=text", and "3! reason" for a bad one.
std::vector<std::string> outline(RecordReader& reader) {
  std::vector<std::string> lines;
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  while (reader.next(record, bad)) {
    if (bad) {
      lines.push_back(str(bad->line, "! ", bad->reason));
      continue;
    }
    std::string line = str(record.line, ":");
    for (const RawField& field : record.fields) line += str(" ", field.name, "=", field.text);
    lines.push_back(line);
  }
  return lines;
}
std::vector<std::string> outline(const std::string& name, std::string_view text) {
  const TextFile file(name, text);
  return outline(*RecordReader::open(file.path()));
}
using Lines = std::vector<std::string>;

// The reason for the one record of a file.
std::string reason(const std::string& name, std::string_view text) {
  const Lines lines = outline(name, text);
  REQUIRE(lines.size() == 1);
  return lines[0];
}

TEST_CASE("json lines: records come in order with their lines, whatever the line ends and blank lines are", "[data]") {
  const Lines expected = {"1: a=x", "3: a=y", "6: a=z"};
  CHECK(outline("a.jsonl", "{\"a\":\"x\"}\n\n{\"a\":\"y\"}\n \t\n\n{\"a\":\"z\"}") == expected);
  CHECK(outline("a.jsonl", "{\"a\":\"x\"}\n\n{\"a\":\"y\"}\n \t\n\n{\"a\":\"z\"}\n\n") == expected);
  CHECK(outline("a.jsonl", "{\"a\":\"x\"}\r\n\r\n{\"a\":\"y\"}\r\n\r\n\r\n{\"a\":\"z\"}\r\n") == expected);
  CHECK(outline("a.jsonl", "\xEF\xBB\xBF{\"a\":\"x\"}\n\n  {\"a\":\"y\"}  \n\n\n{\"a\":\"z\"}") == expected);
}

TEST_CASE("json lines: a file without records has none", "[data]") {
  for (const std::string text : {"", "\n", " \r\n\n", "\xEF\xBB\xBF"}) CHECK(outline("a.jsonl", text).empty());
  for (const std::string text : {"[]", " [ \n ] \n", "\xEF\xBB\xBF[]"}) CHECK(outline("a.json", text).empty());
}

TEST_CASE("json lines: strings are unescaped and every other value keeps its text and kind", "[data]") {
  const TextFile file(
      "a.jsonl",
      R"({"s":"a\n\u00e9\ud83d\ude00\"","n":-1.50e+3,"big":123456789012345678901234567890,"t":true,"f":false,)"
      R"("z":null,"o": {"k" : [1, "]}"]} ,"l":[ ],"e":""})");
  const auto reader = RecordReader::open(file.path());
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  REQUIRE(reader->next(record, bad));
  REQUIRE(bad == nullptr);
  const auto shows = [&](std::string_view name, FieldKind kind, const std::string& text) {
    const RawField* field = record.find(name);
    return field != nullptr && field->kind == kind && field->text == text;
  };
  CHECK(shows("s", FieldKind::kString, "a\n\xC3\xA9\xF0\x9F\x98\x80\""));
  CHECK(shows("n", FieldKind::kNumber, "-1.50e+3"));
  CHECK(shows("big", FieldKind::kNumber, "123456789012345678901234567890"));
  CHECK(shows("t", FieldKind::kBoolean, "true"));
  CHECK(shows("f", FieldKind::kBoolean, "false"));
  CHECK(shows("z", FieldKind::kNull, "null"));
  CHECK(shows("o", FieldKind::kObject, R"({"k" : [1, "]}"]})"));
  CHECK(shows("l", FieldKind::kArray, "[ ]"));
  CHECK(shows("e", FieldKind::kString, ""));
  CHECK(record.find("absent") == nullptr);
  CHECK(record.fields.size() == 9);
}

TEST_CASE("json lines: a bad record says why and the next one is read all the same", "[data]") {
  CHECK(outline("a.jsonl", "{\"a\":1}\n{\"a\":\n{\"a\":3}\n") ==
        Lines{"1: a=1", "2! broken JSON: the record has no end; is the line complete?", "3: a=3"});
  CHECK(outline("a.json", "[{\"a\":1},\n{\"a\" 2},\n\n{\"a\":3}]") ==
        Lines{"1: a=1", "2! broken JSON near byte 6 of the record", "4: a=3"});
}

TEST_CASE("json lines: every kind of broken record has its message", "[data]") {
  CHECK(reason("a.jsonl", R"({"a":"x)") == "1! broken JSON: a string is not closed");
  for (const std::string open : {"{", "{\"a\":{}", "{\"a\":{\"b\":1}", "{\"a\":[{}]", "{\"a\":1,", "{\"a\":1"}) {
    INFO(open);
    CHECK(reason("a.jsonl", open) == "1! broken JSON: the record has no end; is the line complete?");
  }
  CHECK(reason("a.jsonl", "{\"a\":\"x\ty\"}") == "1! broken JSON: a control character in a string is not escaped");
  CHECK(reason("a.jsonl", "{\"a\":\"\xFF\"}") == "1! invalid UTF-8");
  CHECK(reason("a.jsonl", "{\"a\":\"\xED\xA0\x80\"}") == "1! invalid UTF-8");
  CHECK_THAT(reason("a.jsonl", R"({"a":"\q"})"), Contains("broken JSON: bad escape in a string near byte"));
  CHECK_THAT(reason("a.jsonl", R"({"a":"\ud800"})"), Contains("bad escape"));
  CHECK_THAT(reason("a.jsonl", R"({"\q":1})"), Contains("bad escape"));
  CHECK_THAT(reason("a.jsonl", R"({"a":01})"), Contains("broken JSON: bad number near byte"));
  CHECK(reason("a.jsonl", R"({"a":1,"a":2})") == "1! field 'a' is there twice");
  CHECK(reason("a.jsonl", R"({"a":1,"\u0061":2})") == "1! field 'a' is there twice");
  CHECK(reason("a.jsonl", R"({"a":1}{"b":2})") == "1! text behind the end of the object; is a line break missing?");
  CHECK(reason("a.jsonl", R"({"a":1}})") == "1! text behind the end of the object; is a line break missing?");
  CHECK(reason("a.jsonl", R"("text")") == "1! found a string, expected an object");
  CHECK(reason("a.jsonl", "12") == "1! found a number, expected an object");
  CHECK(reason("a.jsonl", "true") == "1! found a boolean, expected an object");
  CHECK(reason("a.jsonl", "null") == "1! found null, expected an object");
  CHECK(reason("a.jsonl", "[{}]") ==
        "1! found an array, expected an object; name the file .json if all of it is one array");
  CHECK(reason("a.jsonl", "hello") == "1! broken JSON: found 'h', expected an object");
  CHECK(reason("a.jsonl", std::string_view("\0{}", 3)) == "1! broken JSON: found byte 0x00, expected an object");
  const std::string deep = "{\"a\":" + std::string(400, '[') + std::string(400, ']') + "}";
  CHECK(reason("a.jsonl", deep) == "1! nested more than 256 levels deep");
}

TEST_CASE("json lines: what is wrong inside a nested value is found too", "[data]") {
  for (const std::string text :
       {R"({"a":[1,]})",      R"({"a":[1 2]})", R"({"a":{"b"}})", R"({"a":{"b":1,}})", R"({"a":[1}})",
        R"({"a":{"b":tru}})", R"({"a":[nul]})", R"({"a":[1.]})",  R"({"a":[+1]})",     R"({"a":["\q"]})",
        R"({"a":{"\q":1}})",  R"({"a":[x]})",   R"({"a":{1:2}})", R"({"a":1,})",       R"({,"a":1})",
        R"({"a":tru})",       R"({"a":x})",     R"({"a":})",      R"({"a"})",          R"({a:1})",
        R"({"a":1 "b":2})"}) {
    INFO(text);
    CHECK_THAT(reason("a.jsonl", text), Contains("broken JSON"));
  }
}

TEST_CASE("json lines: numbers follow JSON's grammar", "[data]") {
  for (const std::string number : {"0", "-0", "10", "1.5", "1e5", "1E-5", "-1.0e+10"}) {
    INFO(number);
    CHECK(reason("a.jsonl", "{\"a\":" + number + "}") == "1: a=" + number);
  }
  for (const std::string number : {"-", "01", "1.", ".5", "1e", "1e+", "0x10", "1a", "--1", "NaN", "Infinity"}) {
    INFO(number);
    CHECK_THAT(reason("a.jsonl", "{\"a\":" + number + "}"), Contains("broken JSON"));
  }
}

TEST_CASE("json lines: a bad record comes with all of its text, a broken array with its next 200 bytes", "[data]") {
  const std::string line = "{\"a\" " + std::string(1000, 'x') + "}";
  const TextFile file("a.jsonl", line), array("a.json", "[{\"a\":1} " + std::string(1000, 'y'));
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  REQUIRE(RecordReader::open(file.path())->next(record, bad));
  REQUIRE(bad);
  CHECK((bad->text == line));
  const auto reader = RecordReader::open(array.path());
  REQUIRE(reader->next(record, bad));
  REQUIRE(reader->next(record, bad));
  REQUIRE(bad);
  CHECK((bad->text == std::string(200, 'y')));
}

TEST_CASE("json lines: an array is read object by object, one a line, many a line or many lines each", "[data]") {
  CHECK(outline("a.json", R"([{"a":"x"},{"a":"y"}])") == Lines{"1: a=x", "1: a=y"});
  CHECK(outline("a.json", "[\n  {\n    \"a\": \"x\"\n  },\n  {\n    \"a\": \"y\"\n  }\n]\n") ==
        Lines{"2: a=x", "5: a=y"});
  CHECK(outline("a.json", "\xEF\xBB\xBF\r\n[\r\n{\"a\":\"x\"}\r\n,\r\n{\"a\":\"y\"}\r\n]") ==
        Lines{"3: a=x", "5: a=y"});
  CHECK(outline("a.json", R"([{"a":"]},{\"","b":[{"c":"\\"}]},{"a":"y"}])") ==
        Lines{R"(1: a=]},{" b=[{"c":"\\"}])", "1: a=y"});
}

TEST_CASE("json lines: an element of an array that is no object is one bad record", "[data]") {
  CHECK(outline("a.json", R"([1, "a,]b", {"a":1}, [{"b":2}], null,{"c":3}])") ==
        Lines{"1! found a number, expected an object", "1! found a string, expected an object", "1: a=1",
              "1! found an array, expected an object", "1! found null, expected an object", "1: c=3"});
}

TEST_CASE("json lines: broken array syntax is reported once and ends the file", "[data]") {
  const auto broken = [](const std::string& text) {
    Lines lines = outline("a.json", text);
    REQUIRE_FALSE(lines.empty());
    const std::string last = lines.back();
    lines.pop_back();
    for (const std::string& line : lines) CHECK(line.find('!') == std::string::npos);
    return last;
  };
  CHECK(broken("[{\"a\":1}\n{\"a\":2},{\"a\":3}]") == "2! broken array: found '{', expected ',' or ']'");
  CHECK(broken("[{\"a\":1},\n{\"a\":") == "2! broken array: the file ends inside a record; is it complete?");
  CHECK(broken("[{\"a\":1},\n{\"a\":\"x") == "2! broken array: the file ends inside a record; is it complete?");
  CHECK(broken("[{\"a\":1},\n{\"a\":\"x\\") == "2! broken array: the file ends inside a record; is it complete?");
  CHECK(broken("[{\"a\":1},\n") == "2! broken array: the file ends without ']'");
  CHECK(broken("[{\"a\":1}") == "1! broken array: the file ends without ']'");
  CHECK(broken("[") == "1! broken array: the file ends without ']'");
  CHECK(broken("[{\"a\":1},]") == "1! broken array: found ']', expected an object");
  CHECK(broken("[{\"a\":1},,{\"a\":2}]") == "1! broken array: found ',', expected an object");
  CHECK(broken("[,{\"a\":2}]") == "1! broken array: found ',', expected an object");
  CHECK(broken("[{\"a\":[1},{\"a\":2}]") == "1! broken JSON: '}' closes a '['");
  CHECK(broken("[{\"a\":1}}]") == "1! broken array: found '}', expected ',' or ']'");
  CHECK(broken("[{\"a\":1}]\n x") == "2! found 'x' behind the end of the array");
  CHECK(broken("[]]") == "1! found ']' behind the end of the array");
}

TEST_CASE("json lines: a .json file that is no array and a missing file are refused", "[data]") {
  const TextFile lines("a.json", "\n{\"a\":1}\n{\"a\":2}\n"), empty("b.json", " ");
  CHECK_THROWS_WITH(
      RecordReader::open(lines.path()),
      Equals(lines.name() + ":2: found '{', expected '[': a .json file is one array of objects; name it .jsonl if "
                            "each line is an object"));
  CHECK_THROWS_WITH(RecordReader::open(empty.path()), Contains(":1: found nothing, expected '['"));
  CHECK_THROWS_AS(RecordReader::open(lines.path()), InputError);
  CHECK_THROWS_AS(RecordReader::open("no/such/file.jsonl"), InputError);
}

TEST_CASE("json lines: a reader goes back to any record by offset and line", "[data]") {
  const std::string lines = "\xEF\xBB\xBF{\"a\":1}\n\n{\"a\":2}\r\n{bad}\n{\"a\":3}";
  const std::string array = "[\n{\"a\":1},{\"a\":2}\n\n,{\"a\" 0}, {\"a\":3}]";
  for (const auto& [name, text] : {std::pair{"a.jsonl", lines}, std::pair{"a.json", array}}) {
    const TextFile file(name, text);
    const auto reader = RecordReader::open(file.path());
    const Lines all = outline(*reader);
    REQUIRE(all.size() == 4);
    reader->rewind();
    CHECK(outline(*reader) == all);

    RawRecord record;
    std::unique_ptr<BadRecord> bad;
    reader->rewind();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::uint64_t offset = reader->offset();
      const std::int64_t line = reader->line();
      outline(*reader);
      reader->seek(offset, line);
      CHECK(outline(*reader) == Lines(all.begin() + static_cast<std::ptrdiff_t>(i), all.end()));
      reader->seek(offset, line);
      reader->next(record, bad);
    }
  }
}

TEST_CASE("json lines: a line of 8 MiB is one record, at the end of the file or not", "[data]") {
  const std::string text(8 << 20, 'x');
  const std::string line = "{\"a\":\"" + text + "\"}";
  for (const auto& [name, content] :
       {std::pair{"a.jsonl", line + "\n" + line}, std::pair{"a.json", "[" + line + "," + line + "]"}}) {
    const TextFile file(name, content);
    const auto reader = RecordReader::open(file.path());
    RawRecord record;
    std::unique_ptr<BadRecord> bad;
    for (int i = 0; i < 2; ++i) {
      REQUIRE(reader->next(record, bad));
      REQUIRE(bad == nullptr);
      CHECK((record.fields.at(0).text == text));
    }
    CHECK_FALSE(reader->next(record, bad));
  }
}

// simdjson works on blocks of 64 bytes, and the copy for its padding is made near the end of a file.
TEST_CASE("json lines: a record of any length is read, with any number of bytes behind it", "[data]") {
  for (std::size_t length = 0; length < 140; ++length) {
    const std::string text(length, 'x');
    INFO(length);
    CHECK(outline("a.jsonl", "{\"a\":\"" + text + "\"}") == Lines{"1: a=" + text});
    CHECK(outline("a.jsonl", "{\"a\":1}\n{\"a\":\"" + text + "\"}\n") == Lines{"1: a=1", "2: a=" + text});
    CHECK(outline("a.jsonl", "{\"a\":[1,\"" + text + "\n") == Lines{"1! broken JSON: a string is not closed"});
  }
}

}  // namespace
}  // namespace dagmoe
