#include "base/error.h"

#include "tests/support/catch.h"

using namespace dagmoe;

TEST_CASE("error: every class carries the exit code that the README names", "[base]") {
  CHECK(ConfigError("x").exit_code() == ExitCode::kConfig);
  CHECK(InputError("x").exit_code() == ExitCode::kInput);
  CHECK(NumericsError("x").exit_code() == ExitCode::kNumerics);
  CHECK(InternalError("x").exit_code() == ExitCode::kInternal);
  CHECK(static_cast<int>(ExitCode::kConfig) == 2);
  CHECK(static_cast<int>(ExitCode::kInput) == 3);
  CHECK(static_cast<int>(ExitCode::kNumerics) == 4);
  CHECK(static_cast<int>(ExitCode::kInternal) == 70);
}

TEST_CASE("error: a ConfigError prints an issue a line and the summary last", "[base]") {
  const ConfigError error({"a.yaml:1:1: one", "a.yaml:2:1: two"}, "2 problems in a.yaml; nothing was run");
  CHECK(std::string(error.what()) == "a.yaml:1:1: one\na.yaml:2:1: two\n2 problems in a.yaml; nothing was run");
  CHECK(error.issues().size() == 2);
  CHECK(std::string(ConfigError({"one"}, "").what()) == "one");
  CHECK(ConfigError("one").issues() == std::vector<std::string>{"one"});
}

TEST_CASE("closest_names: letters swapped, missing, added or in the other case are near", "[base]") {
  const std::vector<std::string> known = {"rank", "alpha", "dropout", "targets"};
  CHECK(closest_names("rnak", known) == std::vector<std::string>{"rank"});
  CHECK(closest_names("rak", known) == std::vector<std::string>{"rank"});
  CHECK(closest_names("rankk", known) == std::vector<std::string>{"rank"});
  CHECK(closest_names("DROPOUT", known) == std::vector<std::string>{"dropout"});
  CHECK(closest_names("target", known) == std::vector<std::string>{"targets"});
}

TEST_CASE("closest_names: nothing is near a word that differs in more than a third of its letters", "[base]") {
  CHECK(closest_names("xyz", {"rank", "alpha"}).empty());
  CHECK(closest_names("abcdef", {"abcxyz"}).empty());
  CHECK(closest_names("abcdef", {"abcdxy"}).size() == 1);
}

TEST_CASE("closest_names: the nearest comes first and there are at most three", "[base]") {
  const std::vector<std::string> known = {"stepsxx", "stepsx", "steps", "steps_a", "steq"};
  const auto near = closest_names("stepsxx", known);
  REQUIRE(near.size() == 3);
  CHECK(near[0] == "stepsxx");
  CHECK(near[1] == "stepsx");
}

TEST_CASE("did_you_mean: names the nearest, else all that is known, else nothing", "[base]") {
  CHECK(did_you_mean("dga", {"dag", "router"}) == "; did you mean 'dag'?");
  CHECK(did_you_mean("zzz", {"dag", "router"}) == "; known: dag, router");
  CHECK(did_you_mean("zzz", {}).empty());
}

TEST_CASE("closest_names: a name of megabytes is near nothing and needs no table of its size", "[base]") {
  CHECK(closest_names(std::string(std::size_t{1} << 28, 'x'), {"dag", "router"}).empty());
}
