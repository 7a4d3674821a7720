// Expected values are those of Python's re.findall and re.sub.
#include "base/error.h"
#include "base/regex.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Found = std::vector<std::vector<std::string>>;

TEST_CASE("regex: all matches are found as re.findall finds them", "[base]") {
  CHECK(Regex("a(b?)(c?)").find_all("abc ac a") == Found{{"b", "c"}, {"", "c"}, {"", ""}});
  CHECK(Regex("b|c").find_all("abc") == Found{{"b"}, {"c"}});
  CHECK(Regex("x").find_all("abc").empty());
  // An empty match may follow one that is not, and stands at the end too.
  CHECK(Regex("b*").find_all("abba") == Found{{""}, {"bb"}, {""}, {""}});
  CHECK(Regex("").find_all("é") == Found{{""}, {""}});
  CHECK(Regex("$").find_all("a\n") == Found{{""}, {""}});
}

TEST_CASE("regex: classes are Unicode's and a dot stops at a line feed", "[base]") {
  CHECK(Regex(R"(\d+)").find_all("٣4 5") == Found{{"٣4"}, {"5"}});
  CHECK(Regex(R"(\w+)").find_all("Éa-b") == Found{{"Éa"}, {"b"}});
  CHECK(Regex(".+").find_all("a\r\nb") == Found{{"a\r"}, {"b"}});
  CHECK(Regex("(?s).+").find_all("a\nb") == Found{{"a\nb"}});
}

TEST_CASE("regex: every match is replaced", "[base]") {
  const auto dash = [](Regex::Groups) { return "-"; };
  CHECK(Regex("b*").replace("abc", dash) == "-a--c-");
  CHECK(Regex(R"(\(\s*([^\)]*?)\s*\))").replace("a ( b ) (c)", [](Regex::Groups groups) {
    return "(" + std::string(groups[1]) + ")";
  }) == "a (b) (c)");
}

TEST_CASE("regex: text that is no UTF-8 is searched around, and a broken pattern refused", "[base]") {
  CHECK(Regex("b").find_all("a\xFF b") == Found{{"b"}});
  CHECK_THROWS_WITH(Regex("(a"), "regular expression '(a' at character 2: missing closing parenthesis");
  CHECK_THROWS_AS(Regex("(a*)*$").find_all(std::string(60, 'a') + "b").size() +
                      Regex("^(a+)+$").find_all(std::string(5000, 'a') + "b").size(),
                  InputError);
}

}  // namespace
}  // namespace dagmoe
