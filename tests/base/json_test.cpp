#include "base/json.h"

#include <chrono>
#include <string>

#include "base/text.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::string parse_message(std::string_view text) {
  return message_of<InputError>([&] { parse_json(text, "c.json"); });
}

}  // namespace

TEST_CASE("json: a document keeps every value and the order of its keys", "[base]") {
  const std::string text =
      R"({"z":1,"a":[true,false,null,-2,1.5,18446744073709551615,"x\u00e9\n"],"m":{"k":{}},"e":[]})";
  const Json document = parse_json(text, "c.json");
  CHECK(document.dump() ==
        "{\"z\":1,\"a\":[true,false,null,-2,1.5,18446744073709551615,\"x\xC3\xA9\\n\"],"
        "\"m\":{\"k\":{}},\"e\":[]}");
  CHECK(document["m"]["k"].is_object());
  CHECK(document["a"][6] == "x\xC3\xA9\n");
}

TEST_CASE("json: a document may be a single value and may be surrounded by white space", "[base]") {
  CHECK(parse_json(" 3 \n", "x") == 3);
  CHECK(parse_json("\"\"", "x") == "");
  CHECK(parse_json("[[1],[2]]", "x")[1][0] == 2);
}

TEST_CASE("json: a key given twice in one object is refused at its place", "[base]") {
  CHECK(parse_message("{\"a\": 1,\n  \"b\": 2,\n  \"a\": 3}") == "c.json:3:3: key 'a' is given twice in one object");
  CHECK(parse_message("{\"x\": {\"a\": 1, \"a\": 1}}") == "c.json:1:16: key 'a' is given twice in one object");
}

TEST_CASE("json: keys that differ only in spelling with escapes are the same key", "[base]") {
  CHECK(parse_message(R"({"a\"b": 1, "a\u0022b": 2})") == "c.json:1:13: key 'a\"b' is given twice in one object");
  CHECK(parse_message(R"({"\\": 1, "\\": 2})") == "c.json:1:11: key '\\' is given twice in one object");
}

TEST_CASE("json: the same key in two objects is no duplicate", "[base]") {
  CHECK(parse_json(R"([{"a":1},{"a":2}])", "x")[1]["a"] == 2);
  CHECK(parse_json(R"({"a":{"a":{"a":1}}})", "x")["a"]["a"]["a"] == 1);
}

TEST_CASE("json: broken syntax is told with line and column", "[base]") {
  CHECK(parse_message("{\"a\": 1,}") == "c.json:1:9: broken JSON: unexpected '}'; expected string literal");
  CHECK(parse_message("{\n  \"a\": tru\n}") == "c.json:2:11: broken JSON: invalid literal");
  CHECK(parse_message("{\"a\": [1, 2") == "c.json:1:12: broken JSON: unexpected end of input; expected ']'");
  CHECK(parse_message("") == "c.json:1:1: broken JSON: unexpected end of input; expected '[', '{', or a literal");
  CHECK(parse_message("{} {}") == "c.json:1:4: broken JSON: unexpected '{'; expected end of input");
  CHECK(parse_message("{\"a\": NaN}") == "c.json:1:7: broken JSON: invalid literal");
  CHECK(parse_message("{'a': 1}") == "c.json:1:2: broken JSON: invalid literal; expected string literal");
  CHECK(parse_message("[01]").find("c.json:1:3: broken JSON: unexpected number literal") == 0);
  CHECK(parse_message("[1e999]") == "c.json:1:6: broken JSON: number overflow parsing '1e999'");
  CHECK(parse_message("// comment\n1") == "c.json:1:1: broken JSON: invalid literal");
}

TEST_CASE("json: every message is one line of valid UTF-8", "[base]") {
  const std::string texts[] = {"{\"a\xFF\": 1}", "[\"\xC3\"]",    "[\"\xE2\x82", "\xFF", "[\"a\nb\"]",
                               "[\"\\x\"]",      "[\"\\ud800\"]", "{\"a\"",      "[\"",  "\xEF\xBB"};
  for (const auto& text : texts) {
    const std::string message = parse_message(text);
    INFO(message);
    CHECK(message.starts_with("c.json:1:"));
    CHECK(message.find("broken JSON: ") != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.find("json.exception") == std::string::npos);
    CHECK(is_valid_utf8(message));
  }
}

TEST_CASE("json: invalid UTF-8 in a string is refused", "[base]") {
  CHECK(parse_message("{\"a\": \"x\xFFy\"}").find("c.json:1:9: broken JSON: invalid string: ill-formed UTF-8 byte") ==
        0);
}

TEST_CASE("json: nesting has a limit, so that no input exhausts the stack", "[base]") {
  CHECK(parse_message(std::string(100'000, '[')) == "c.json:1:513: nested deeper than 512 levels");
  CHECK_NOTHROW(parse_json(std::string(512, '[') + std::string(512, ']'), "x"));
}

TEST_CASE("json: an object with 200,000 keys is read in time linear in its size", "[base]") {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += str(i > 0 ? "," : "", "\"token", i, "\":", i);
  const auto start = std::chrono::steady_clock::now();
  CHECK(parse_json(text + "}", "x").size() == 200'000);
  // A search for each key would take 2e10 comparisons, over a minute; the limit leaves room for sanitizers.
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

TEST_CASE("json: a file's path stands in front of the message and a missing file is an input error", "[base]") {
  const TemporaryFolder folder;
  write_text(folder / "c.json", "{\"a\": 7}");
  CHECK(read_json_file(folder / "c.json")["a"] == 7);
  write_text(folder / "c.json", "{");
  CHECK(message_of<InputError>([&] { read_json_file(folder / "c.json"); }) ==
        (folder / "c.json").string() + ":1:2: broken JSON: unexpected end of input; expected string literal");
  CHECK(message_of<InputError>([&] { read_json_file(folder / "none.json"); }) ==
        (folder / "none.json").string() + ": cannot read: No such file or directory; check the path");
}

TEST_CASE("json: typed access returns values", "[base]") {
  const Json object = parse_json(R"({"i": -3, "d": 0.5, "s": "x"})", "x");
  CHECK(json_int(object, "i", "x") == -3);
  CHECK(json_number(object, "d", "x") == 0.5);
  CHECK(json_number(object, "i", "x") == -3.0);
  CHECK(json_string(object, "s", "x") == "x");
}

TEST_CASE("json: typed access names the key, what was found and what was expected", "[base]") {
  const Json object = parse_json(R"({"s": "x", "d": 1.5, "big": 9223372036854775808, "l": [], "n": null})", "x");
  const auto message = [&](auto access, const Json& from, std::string_view key) {
    return message_of<InputError>([&] { access(from, key, "c.json"); });
  };
  CHECK(message(json_int, object, "none") == "c.json: 'none' is missing");
  CHECK(message(json_int, object, "s") == "c.json: 's': found string, expected integer");
  CHECK(message(json_int, object, "d") == "c.json: 'd': found 1.5, expected integer");
  CHECK(message(json_int, object, "big") == "c.json: 'big': found 9223372036854775808, expected integer");
  CHECK(message(json_number, object, "l") == "c.json: 'l': found array, expected number");
  CHECK(message(json_string, object, "n") == "c.json: 'n': found null, expected string");
  CHECK(message(json_string, object, "d") == "c.json: 'd': found 1.5, expected string");
  CHECK(message(json_int, Json::array(), "s") == "c.json: found array, expected object");
}

TEST_CASE("json: a number that is too large is refused by its first digits", "[base]") {
  CHECK(parse_message("[" + std::string(5000, '9') + "]") ==
        "c.json:1:5001: broken JSON: number overflow parsing '" + std::string(120, '9') + "...'");
}
