#include "base/regex.h"

#include "base/error.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

bool matches(const std::string& pattern, std::string_view text) { return regex_matches_all(pattern, text, "file"); }

}  // namespace

TEST_CASE("regex: the whole text must match, as re.fullmatch has it", "[base]") {
  CHECK(matches("q_proj", "q_proj"));
  CHECK_FALSE(matches("q_proj", "self_attn.q_proj"));
  CHECK_FALSE(matches("q_proj", "q_proj.weight"));
  CHECK(matches(R"(.*\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj))", "model.layers.12.self_attn.v_proj"));
  CHECK_FALSE(matches(R"(.*\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj))", "model.layers.12.self_attn.k_proj"));
  CHECK(matches("", ""));
  CHECK_FALSE(matches("", "a"));
}

TEST_CASE("regex: an alternative that is shorter than the text gives way to one that is not", "[base]") {
  CHECK(matches("a|ab", "ab"));
  CHECK(matches("(?:q|q_proj)", "q_proj"));
}

TEST_CASE("regex: anchors and look-ahead", "[base]") {
  CHECK(matches("(.*\\.)?(^model.norm)", "model.norm"));
  CHECK_FALSE(matches("(.*\\.)?(^model.norm)", "a.model.norm"));
  CHECK(matches("^(?!.*lm_head).*$", "model.layers.0.mlp.up_proj"));
  CHECK_FALSE(matches("^(?!.*lm_head).*$", "lm_head"));
}

TEST_CASE("regex: a dot is no line break, a character may take several bytes", "[base]") {
  CHECK_FALSE(matches("a.b", "a\nb"));
  CHECK_FALSE(matches("a", "a\n"));
  CHECK(matches("a.b", "a\u00e9b"));
}

TEST_CASE("regex: a malformed pattern, and one that would take forever, are input errors", "[base]") {
  REQUIRE_THROWS_WITH(matches("a(b", "ab"), Catch::Matchers::Contains("file: regular expression 'a(b' at character 3"));
  REQUIRE_THROWS_AS(matches("[", "a"), InputError);
  REQUIRE_THROWS_AS(matches("\xff", "a"), InputError);
  REQUIRE_THROWS_WITH(matches("(a|aa)+b", std::string(60, 'a') + "cb"),
                      Catch::Matchers::Contains("takes too long to match"));
}
