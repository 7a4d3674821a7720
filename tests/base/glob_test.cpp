#include "base/glob.h"

#include <string>

#include "tests/support/catch.h"

using namespace dagmoe;

TEST_CASE("glob: a pattern without special characters matches the whole name only", "[base]") {
  CHECK(glob_match("lm_head.weight", "lm_head.weight"));
  CHECK_FALSE(glob_match("lm_head", "lm_head.weight"));
  CHECK_FALSE(glob_match("lm_head.weight", "lm_head"));
  CHECK(glob_match("", ""));
  CHECK_FALSE(glob_match("", "a"));
}

TEST_CASE("glob: a star matches any run of characters, dots and the empty run included", "[base]") {
  CHECK(glob_match("*", ""));
  CHECK(glob_match("*", "a.b.c"));
  CHECK(glob_match("model.*.weight", "model.layers.3.mlp.weight"));
  CHECK(glob_match("*.dag.*", "model.layers.0.mlp.dag.1.norm.weight"));
  CHECK_FALSE(glob_match("*.dag.*", "model.layers.0.mlp.dags.1"));
  CHECK(glob_match("a**b", "ab"));
  CHECK(glob_match("a*b*a", "abba"));
  CHECK_FALSE(glob_match("a*b", "abc"));
}

TEST_CASE("glob: a question mark matches exactly one character", "[base]") {
  CHECK(glob_match("layer?", "layer1"));
  CHECK_FALSE(glob_match("layer?", "layer"));
  CHECK_FALSE(glob_match("layer?", "layer12"));
}

TEST_CASE("glob: a bracket with numbers at both ends is a range of whole numbers", "[base]") {
  const std::string pattern = "model.layers.[8-15].mlp.*";
  for (int layer = 0; layer < 130; ++layer) {
    INFO(layer);
    CHECK(glob_match(pattern, "model.layers." + std::to_string(layer) + ".mlp.up") == (layer >= 8 && layer <= 15));
  }
  CHECK(glob_match("x[7-7]", "x7"));
  CHECK_FALSE(glob_match("x[9-3]", "x5"));
  CHECK(glob_match("model-[1-3]-of-3", "model-00002-of-3"));
  CHECK_FALSE(glob_match("x[1-3]", "x"));
  CHECK_FALSE(glob_match("x[1-3]", "xa"));
  CHECK_FALSE(glob_match("x[1-3]", "x99999999999999999999999"));
}

TEST_CASE("glob: a number range never begins inside a number of the name", "[base]") {
  CHECK_FALSE(glob_match("*[8-15]", "expert.118"));
  CHECK(glob_match("*[8-15]", "expert.15"));
  CHECK(glob_match("*[8-15]", "expert.1.15"));
}

TEST_CASE("glob: a digit before the bracket belongs to the number", "[base]") {
  CHECK(glob_match("layers.1[0-9].x", "layers.17.x"));
  CHECK_FALSE(glob_match("layers.1[0-9].x", "layers.117.x"));
}

TEST_CASE("glob: any other bracket is a set of characters", "[base]") {
  CHECK(glob_match("[qkv]_proj", "k_proj"));
  CHECK_FALSE(glob_match("[qkv]_proj", "o_proj"));
  CHECK(glob_match("[a-c]x", "bx"));
  CHECK_FALSE(glob_match("[a-c]x", "dx"));
  CHECK(glob_match("[!qkv]_proj", "o_proj"));
  CHECK(glob_match("[^qkv]_proj", "o_proj"));
  CHECK_FALSE(glob_match("[!qkv]_proj", "q_proj"));
  CHECK(glob_match("w[12]", "w2"));
  CHECK(glob_match("[]]", "]"));
  CHECK(glob_match("[a-]", "-"));
}

TEST_CASE("glob: a bracket that is never closed is an ordinary character", "[base]") {
  CHECK(glob_match("a[1", "a[1"));
  CHECK_FALSE(glob_match("a[1", "a1"));
}

TEST_CASE("glob: many stars against a long name take no exponential time", "[base]") {
  CHECK_FALSE(glob_match("*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(5000, 'a')));
}
