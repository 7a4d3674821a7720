#include "base/yaml.h"

#include <random>
#include <string>

#include "base/text.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

// The first issue as "line:column: path: message", empty without one.
std::string first_issue(std::string_view text) {
  const YamlDocument document = parse_yaml(text);
  if (document.issues.empty()) return "";
  const YamlIssue& issue = document.issues.front();
  return str(issue.place.line, ":", issue.place.column, ": ", issue.path, issue.path.empty() ? "" : ": ",
             issue.message);
}

}  // namespace

TEST_CASE("yaml: values keep kind, text and place", "[base]") {
  const YamlDocument document =
      parse_yaml("# comment\na: 1\nb:\n  - x\n  - {c: no}\nd: \"2\"\ne:\nf: |\n  one\n  two\n");
  CHECK(document.issues.empty());
  const YamlNode& root = document.root;
  REQUIRE(root.kind == YamlNode::Kind::kMap);
  CHECK(root.members.size() == 5);
  CHECK(root.find("a")->text == "1");
  CHECK_FALSE(root.find("a")->quoted);
  CHECK(root.find("a")->place.line == 2);
  CHECK(root.find("a")->place.column == 4);
  CHECK(root.find("b")->items.at(1).find("c")->text == "no");
  CHECK(root.find("b")->items.at(1).find("c")->place.column == 9);
  CHECK(root.find("d")->quoted);
  CHECK(root.find("e")->kind == YamlNode::Kind::kNull);
  CHECK(root.find("f")->text == "one\ntwo\n");
  CHECK(root.find("g") == nullptr);
}

TEST_CASE("yaml: a null in a mapping stands where its key stands", "[base]") {
  const YamlDocument document = parse_yaml("a: 1\nseed:\n\n\nb: 2\n");
  CHECK(document.root.find("seed")->place.line == 2);
  CHECK(document.root.find("seed")->place.column == 1);
}

TEST_CASE("yaml: a text without content is null", "[base]") {
  for (const char* const text : {"", "# only a comment\n", "\n\n", "---\n"}) {
    const YamlDocument document = parse_yaml(text);
    CHECK(document.issues.empty());
    CHECK(document.root.kind == YamlNode::Kind::kNull);
  }
}

TEST_CASE("yaml: a byte order mark and Windows line ends are no problem", "[base]") {
  const YamlDocument document = parse_yaml(
      "\xEF\xBB\xBF"
      "a: 'x'\r\nb: 2\r\n");
  CHECK(document.issues.empty());
  CHECK(document.root.find("a")->text == "x");
  CHECK(document.root.find("b")->text == "2");
  CHECK(document.root.find("b")->place.line == 2);
}

TEST_CASE("yaml: a key given twice is an issue and the first one counts", "[base]") {
  CHECK(first_issue("a: 1\nb:\n  c: 1\n  c: 2\n") == "4:3: b.c: key is given twice; the first is in line 3");
  CHECK(parse_yaml("a: 1\na: 2\n").root.find("a")->text == "1");
  CHECK(first_issue("{a: 1, 'a': 2}") == "1:8: a: key is given twice; the first is in line 1");
}

TEST_CASE("yaml: every duplicate is reported, in lists and in the duplicates too", "[base]") {
  CHECK(parse_yaml("a: 1\na: {b: 1, b: 2}\na: 3\n").issues.size() == 3);
  CHECK(first_issue("l:\n  - {x: 1}\n  - {x: 1, x: 2}\n") == "3:12: l.1.x: key is given twice; the first is in line 3");
}

TEST_CASE("yaml: anchors, aliases, tags and merge keys are refused and quotes are named as the way out", "[base]") {
  CHECK(first_issue("a: &x 1\n") == "1:4: a: anchors are not supported; a text that starts with '&' needs quotes");
  CHECK(first_issue("a: &x 1\nb: [*x]\n").find("1:4: a: anchors") == 0);
  CHECK(parse_yaml("a: &x 1\nb: [*x]\n").issues.at(1).path == "b.0");
  CHECK(first_issue("a: [*.dag.*]\n") == "1:5: aliases are not supported; a text that starts with '*' needs quotes");
  CHECK(first_issue("a: *\n").find("aliases are not supported") != std::string::npos);
  CHECK(first_issue("a: &\n").find("anchors are not supported") != std::string::npos);
  CHECK(first_issue("a: !!str 1\n") == "1:4: a: tags are not supported; a text that starts with '!' needs quotes");
  CHECK(first_issue("a: !frozen\n") == "1:4: a: tags are not supported; a text that starts with '!' needs quotes");
  CHECK(first_issue("!map {a: 1}\n").find("1:1: tags are not supported") == 0);
  CHECK(first_issue("<<: {a: 1}\n") == "1:1: merge keys are not supported; write the keys out");
  CHECK(first_issue("'<<': {a: 1}\n").empty());
  CHECK(first_issue("a: ['*.dag.*', '&x', '!y']\n").empty());
}

TEST_CASE("yaml: a second document is an issue", "[base]") {
  CHECK(first_issue("a: 1\n---\nb: 2\n") ==
        "3:1: a second document starts here; check the indentation and remove any '---'");
  CHECK(first_issue("---\na: 1\n...\n").empty());
}

TEST_CASE("yaml: keys that are no text are issues", "[base]") {
  CHECK(first_issue("? [a, b]\n: 1\n") == "1:3: a key must be text");
  CHECK(first_issue("x:\n  ~: 1\n") == "2:3: x: a key must be text");
  CHECK(first_issue(": 1\n") == "1:1: a key must be text");
}

TEST_CASE("yaml: broken syntax is told as what to do about it", "[base]") {
  const auto broken = [](std::string_view text) {
    CHECK(parse_yaml(text).is_broken);
    return first_issue(text);
  };
  CHECK(broken("a: 1\nb 2\nc: 3\n") ==
        "3:2: broken YAML: unexpected key; check its indentation, and that the line before has a ':'");
  CHECK(broken("a: 1\n  b: 2\n").find("2:4: broken YAML: unexpected key") == 0);
  CHECK(broken("a: x: y\n") == "1:5: broken YAML: unexpected ':'; a text that contains ': ' needs quotes");
  CHECK(broken("a: [1, 2\nb: 3\n") ==
        "2:2: broken YAML: expected ',' or ']'; a text with a comma or brackets needs quotes");
  CHECK(broken("a: [layers.[8-15].x]\n").find("broken YAML: expected ',' or ']'") != std::string::npos);
  CHECK(broken("a: {x: 1\nb: 2\n") ==
        "2:2: broken YAML: expected ',' or '}'; a text with a comma or brackets needs quotes");
  CHECK(broken("a: 1\n- b\n") == "2:1: broken YAML: expected 'key: value'; check the indentation");
  CHECK(broken("- [a]\n  b\n").find("broken YAML: expected '- item'; check the indentation") != std::string::npos);
  CHECK(broken("a:\n\t- b\n") == "2:2: broken YAML: unexpected '-'; check the indentation (spaces, no tabs)");
  CHECK(broken("a: >\n\tx\n") == "2:1: broken YAML: found a tab in the indentation, expected spaces");
  CHECK(broken("a: ]\n") == "1:4: broken YAML: closing bracket without an opening one");
  CHECK(broken("a: @x\n") == "1:4: broken YAML: a text that starts with '%', '@' or '`' needs quotes");
  CHECK(broken("a: \"\\q\"\n") == "1:7: broken YAML: unknown escape character: q");
}

TEST_CASE("yaml: a quote that is never closed is told where it opens", "[base]") {
  CHECK(first_issue("a: 1\nb: 'abc\nc: 2\n") == "2:4: b: broken YAML: the quote is never closed");
  CHECK(first_issue("b: \"abc\\\"\nc: 2\n") == "1:4: b: broken YAML: the quote is never closed");
  CHECK(first_issue("b: 'it''s\n") == "1:4: b: broken YAML: the quote is never closed");
  CHECK(first_issue("a: 'it''s'\nb: \"x\\\"\\\\\"\nc: ''\nd: don't\n").empty());
}

TEST_CASE("yaml: bytes that are no UTF-8 and control characters are refused at their line", "[base]") {
  CHECK(first_issue("a: 1\nb: \xFF\n") == "2:1: the line is not valid UTF-8; save the file as UTF-8");
  CHECK(first_issue("\xC3").find("1:1: the line is not valid UTF-8") == 0);
  CHECK(first_issue("a: 1\nb: x\x04y\n") == "2:5: found the control character '\\x04'; remove it");
  CHECK(first_issue(std::string("a\0b: 1", 6)) == "1:2: found the control character '\\x00'; remove it");
}

TEST_CASE("yaml: nesting has a limit", "[base]") { CHECK(parse_yaml(std::string(5000, '[')).is_broken); }

TEST_CASE("yaml: no text of random YAML characters crashes the reader", "[base]") {
  std::mt19937 random(17);
  constexpr std::string_view kCharacters = "ab1 \n\n  -:?,[]{}#&*!|>'\"%@`~<\\\t\r.\xC3\xA9";
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (std::size_t length = random() % 40; text.size() < length;) text += kCharacters[random() % kCharacters.size()];
    const YamlDocument document = parse_yaml(text);
    for (const auto& issue : document.issues) {
      INFO(quoted_for_message(text) << " " << issue.message);
      REQUIRE(issue.place.line >= 1);
      REQUIRE(issue.message.find('\n') == std::string::npos);
    }
  }
}
