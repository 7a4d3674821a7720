#include "base/config_reader.h"

#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <random>
#include <string>

#include "base/error.h"
#include "base/text.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

enum class Kind { kConstant, kLinear, kCosine };

struct Lora {
  std::int64_t rank = 8;
  double alpha = 16.0, dropout = 0.0;
  std::vector<std::string> targets = {"attention"};
  bool operator==(const Lora&) const = default;
};

struct Source {
  std::string path, format = "alpaca";
  double weight = 1.0;
  bool operator==(const Source&) const = default;
};

struct Data {
  std::vector<Source> train;
  bool packing = true;
  bool operator==(const Data&) const = default;
};

struct Recipe {
  std::int64_t seed = 17;
  std::string output_dir;
  std::vector<std::string> trainable = {"dag"};
  std::optional<Lora> lora;
  Data data;
  std::vector<double> betas = {0.9, 0.999};
  Kind kind = Kind::kConstant;
  std::optional<double> max_grad_norm;
  std::optional<std::int64_t> steps;
  std::optional<std::string> note;
  bool operator==(const Recipe&) const = default;
};

template <class Fields>
void bind(Fields& fields, Lora& lora) {
  fields.optional("rank", lora.rank, {.min = 1, .max = 4096});
  fields.optional("alpha", lora.alpha, {.min = 0.0});
  fields.optional("dropout", lora.dropout, {.min = 0.0, .max = 0.99});
  fields.required("targets", lora.targets);
}

template <class Fields>
void bind(Fields& fields, Source& source) {
  fields.required("path", source.path);
  fields.optional("format", source.format);
  fields.optional("weight", source.weight, {.max = 100.0});
}

template <class Fields>
void bind(Fields& fields, Data& data) {
  fields.section("train", data.train);
  fields.optional("packing", data.packing);
}

template <class Fields>
void bind(Fields& fields, Recipe& recipe) {
  fields.optional("seed", recipe.seed);
  fields.required("output_dir", recipe.output_dir);
  fields.optional("trainable", recipe.trainable);
  fields.section("lora", recipe.lora);
  fields.section("data", recipe.data);
  fields.optional("betas", recipe.betas);
  fields.choice("kind", recipe.kind,
                {{"constant", Kind::kConstant}, {"linear", Kind::kLinear}, {"cosine", Kind::kCosine}});
  fields.optional("max_grad_norm", recipe.max_grad_norm, {.min = 0.0});
  fields.optional("steps", recipe.steps, {.min = 1});
  fields.optional("note", recipe.note);
}

Recipe read(std::string_view text, const std::vector<std::string>& overrides = {}) {
  Recipe recipe;
  ConfigReader reader = ConfigReader::parse(text, "a.yaml", overrides);
  bind(reader, recipe);
  reader.finish();
  return recipe;
}

// Every issue a line, without the summary.
std::string issues(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    read(text, overrides);
  } catch (const ConfigError& error) {
    return join(error.issues(), "\n");
  }
  return "";
}

// The same for a text that has everything that is required, in its first line.
std::string issues_behind(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return issues("output_dir: x\n" + text, overrides);
}

std::string write(Recipe recipe) {
  ConfigWriter writer;
  bind(writer, recipe);
  return writer.text();
}

constexpr const char* kFullText = R"(# A recipe.
seed: -3
output_dir: runs/a
trainable: [dag, "model.layers.[8-15].*"]
lora: {rank: 16, alpha: 32, targets: [attention, experts]}
data:
  train:
    - path: x.jsonl
      weight: 2.5e-1
    - {path: y.jsonl, format: chat}
  packing: false
betas: [0.8, 1]
kind: cosine
max_grad_norm: 1
steps: 200
note: no
)";

}  // namespace

TEST_CASE("config reader: every field of a full text arrives", "[base]") {
  const Recipe recipe = read(kFullText);
  CHECK(recipe.seed == -3);
  CHECK(recipe.output_dir == "runs/a");
  CHECK(recipe.trainable == std::vector<std::string>{"dag", "model.layers.[8-15].*"});
  REQUIRE(recipe.lora);
  CHECK(*recipe.lora == Lora{16, 32.0, 0.0, {"attention", "experts"}});
  CHECK(recipe.data.train == std::vector<Source>{{"x.jsonl", "alpaca", 0.25}, {"y.jsonl", "chat", 1.0}});
  CHECK_FALSE(recipe.data.packing);
  CHECK(recipe.betas == std::vector<double>{0.8, 1.0});
  CHECK(recipe.kind == Kind::kCosine);
  CHECK(recipe.max_grad_norm == 1.0);
  CHECK(recipe.steps == 200);
  CHECK(recipe.note == "no");
}

TEST_CASE("config reader: what is absent keeps its default", "[base]") {
  Recipe expected;
  expected.output_dir = "x";
  CHECK(read("output_dir: x") == expected);
}

TEST_CASE("config reader: null reads as absent for optional values, sections and lists", "[base]") {
  Recipe expected;
  expected.output_dir = "x";
  CHECK(read("output_dir: x\nlora: null\ndata:\nsteps: ~\nnote: null\n") == expected);
}

TEST_CASE("config reader: numbers are decimal and nothing else", "[base]") {
  const auto seed = [](const std::string& text) { return read("output_dir: x\nseed: " + text).seed; };
  CHECK(seed("+5") == 5);
  CHECK(seed("007") == 7);
  CHECK(seed("9223372036854775807") == std::numeric_limits<std::int64_t>::max());
  CHECK(seed("-9223372036854775808") == std::numeric_limits<std::int64_t>::min());
  for (const std::string text : {"abc", "0x10", "1_000", "1.0", "2e3", "1 2", "true", "+", "0o7", "1:30"}) {
    CHECK(issues_behind("seed: " + text) == "a.yaml:2:7: seed: found '" + text + "', expected an integer");
  }
  const auto norm = [](const std::string& text) {
    return *read("output_dir: x\nmax_grad_norm: " + text).max_grad_norm;
  };
  CHECK(norm("2e3") == 2000.0);
  CHECK(norm("2.0e-5") == 2e-5);
  CHECK(norm("+.5") == 0.5);
  CHECK(norm("1.") == 1.0);
  CHECK(norm("3") == 3.0);
  for (const std::string text : {"inf", ".inf", "nan", ".nan", "0x1p3", "1e", "1e+", ".", "+", "1,5", "1.2.3"}) {
    CHECK(issues_behind("max_grad_norm: " + text) ==
          "a.yaml:2:16: max_grad_norm: found '" + text + "', expected a number");
  }
}

TEST_CASE("config reader: numbers that do not fit are told", "[base]") {
  CHECK(issues_behind("seed: 9223372036854775808") ==
        "a.yaml:2:7: seed: found '9223372036854775808', which does not fit in 64 bits");
  CHECK(issues_behind("max_grad_norm: 1e999") ==
        "a.yaml:2:16: max_grad_norm: found '1e999', which does not fit in 64 bits");
}

TEST_CASE("config reader: truth values are true and false only", "[base]") {
  for (const std::string text : {"no", "yes", "True", "1", "off"}) {
    CHECK(issues_behind("data: {packing: " + text + "}") ==
          "a.yaml:2:17: data.packing: found '" + text + "', expected true or false");
  }
}

TEST_CASE("config reader: a number or truth value in quotes is text, and the hint says so", "[base]") {
  CHECK(issues_behind("seed: '17'") == "a.yaml:2:7: seed: found '17', expected an integer; remove the quotes");
  CHECK(issues_behind("max_grad_norm: \"1.0\"") ==
        "a.yaml:2:16: max_grad_norm: found '1.0', expected a number; remove the quotes");
  CHECK(issues_behind("data: {packing: 'true'}") ==
        "a.yaml:2:17: data.packing: found 'true', expected true or false; remove the quotes");
  CHECK(issues_behind("seed: 'abc'") == "a.yaml:2:7: seed: found 'abc', expected an integer");
}

TEST_CASE("config reader: a text field takes any scalar as it is written", "[base]") {
  for (const std::string text : {"no", "0x10", "1_000", "2024-01-01", "1.50", "true"}) {
    CHECK(read("output_dir: " + text).output_dir == text);
  }
  CHECK(read("output_dir: 'null'").output_dir == "null");
  CHECK(read("output_dir: ''").output_dir.empty());
}

TEST_CASE("config reader: the wrong kind of value is told as what it is", "[base]") {
  CHECK(issues("output_dir: [a]") == "a.yaml:1:13: output_dir: found a list, expected text");
  CHECK(issues("output_dir: {a: b}") == "a.yaml:1:13: output_dir: found a mapping, expected text");
  CHECK(issues("output_dir:") == "a.yaml:1:1: output_dir: found nothing, expected text");
  CHECK(issues_behind("seed:\nkind: linear") == "a.yaml:2:1: seed: found nothing, expected an integer");
  CHECK(issues_behind("trainable: {a: b}") == "a.yaml:2:12: trainable: found a mapping, expected a list of texts");
  CHECK(issues_behind("betas: 0.9") == "a.yaml:2:8: betas: found '0.9', expected a list of numbers");
  CHECK(issues_behind("lora: 8") == "a.yaml:2:7: lora: found '8', expected a mapping");
  CHECK(issues_behind("data: {train: x.jsonl}") ==
        "a.yaml:2:15: data.train: found 'x.jsonl', expected a list of mappings");
  CHECK(issues_behind("data: {train: {path: x}}") ==
        "a.yaml:2:15: data.train: found a mapping, expected a list of mappings");
  CHECK(issues_behind("data: {train: [x]}") == "a.yaml:2:16: data.train.0: found 'x', expected a mapping");
  CHECK(issues_behind("kind: [a]").find("a.yaml:2:7: kind: found a list, expected one of constant") == 0);
}

TEST_CASE("config reader: every wrong item of a list is told with its index", "[base]") {
  CHECK(issues_behind("betas: [0.9, x, 1, y]") ==
        "a.yaml:2:14: betas.1: found 'x', expected a number\n"
        "a.yaml:2:20: betas.3: found 'y', expected a number");
  CHECK(issues_behind("trainable:\n  - dag\n  - {x: y}\n") ==
        "a.yaml:4:5: trainable.1: found a mapping, expected text");
}

TEST_CASE("config reader: a single text stands for a list of one", "[base]") {
  CHECK(read("output_dir: x\ntrainable: full").trainable == std::vector<std::string>{"full"});
  CHECK(read("output_dir: x\ntrainable: []").trainable.empty());
}

TEST_CASE("config reader: bounds are inclusive and told as they are set", "[base]") {
  const auto lora = [](const std::string& text) { return issues_behind("lora: {targets: [], " + text + "}"); };
  CHECK(lora("rank: 1, dropout: 0.99").empty());
  CHECK(lora("rank: 4096, dropout: 0").empty());
  CHECK(lora("rank: 0") == "a.yaml:2:27: lora.rank: found 0, expected between 1 and 4096");
  CHECK(lora("dropout: 1.0") == "a.yaml:2:30: lora.dropout: found 1.0, expected between 0 and 0.99");
  CHECK(lora("alpha: -1") == "a.yaml:2:28: lora.alpha: found -1, expected at least 0");
  CHECK(issues_behind("steps: 0") == "a.yaml:2:8: steps: found 0, expected at least 1");
  CHECK(issues_behind("data: {train: [{path: x, weight: 101}]}") ==
        "a.yaml:2:34: data.train.0.weight: found 101, expected at most 100");
}

TEST_CASE("config reader: an unknown key is told at its place, with the nearest known one", "[base]") {
  CHECK(issues_behind("lora:\n  rnak: 3\n  targets: []\n") ==
        "a.yaml:3:3: lora.rnak: unknown key; did you mean 'rank'?");
  CHECK(issues_behind("max_grad_nrm: 1.0") == "a.yaml:2:1: max_grad_nrm: unknown key; did you mean 'max_grad_norm'?");
  CHECK(issues_behind("lroa: {rank: 1}") == "a.yaml:2:1: lroa: unknown key; did you mean 'lora'?");
  CHECK(issues_behind("data: {xyz: 1}") == "a.yaml:2:8: data.xyz: unknown key; known: train, packing");
  CHECK(issues_behind("data: {train: [{path: x, formt: y}]}") ==
        "a.yaml:2:26: data.train.0.formt: unknown key; did you mean 'format'?");
}

TEST_CASE("config reader: a required key that is missing is told at its mapping", "[base]") {
  CHECK(issues("seed: 1") == "a.yaml:1:1: output_dir: required key is missing");
  CHECK(issues("") == "a.yaml:1:1: output_dir: required key is missing");
  CHECK(issues_behind("lora:\n  rank: 3\n") == "a.yaml:3:3: lora.targets: required key is missing");
  CHECK(issues_behind("data:\n  train:\n    - format: x\n") ==
        "a.yaml:4:7: data.train.0.path: required key is missing");
}

TEST_CASE("config reader: a section that is absent is still asked for its required keys", "[base]") {
  struct Outer {
    Source source;
  } outer;
  for (const char* const text : {"other: 1", "source:\nother: 1", "source: {}\nother: 1"}) {
    ConfigReader reader = ConfigReader::parse(text, "a.yaml");
    reader.section("source", outer.source);
    REQUIRE(reader.issues().size() == 1);
    CHECK(reader.issues()[0].ends_with(": source.path: required key is missing"));
  }
}

TEST_CASE("config reader: an empty list replaces a default one", "[base]") {
  std::vector<Source> sources = {{"default", "x", 1.0}};
  ConfigReader reader = ConfigReader::parse("train: []", "a.yaml");
  reader.section("train", sources);
  CHECK(sources.empty());
}

TEST_CASE("config reader: a word that is no choice is told with all of them and the nearest", "[base]") {
  CHECK(issues_behind("kind: cosin") ==
        "a.yaml:2:7: kind: found 'cosin', expected one of constant, linear, cosine; did you mean 'cosine'?");
  CHECK(issues_behind("kind: 7") == "a.yaml:2:7: kind: found '7', expected one of constant, linear, cosine");
  CHECK(issues_behind("kind:") == "a.yaml:2:1: kind: found nothing, expected one of constant, linear, cosine");
}

TEST_CASE("config reader: a key given twice is an issue among the others", "[base]") {
  CHECK(issues_behind("seed: 1\nseed: x\n") == "a.yaml:3:1: seed: key is given twice; the first is in line 2");
}

TEST_CASE("config reader: all issues come together, in the order of the file, the command line's last", "[base]") {
  const std::string text = "kind: cosin\nlora:\n  rnak: 3\n  targets: []\nseed: abc\nseed: 1\n";
  const auto message = message_of<ConfigError>([&] { read(text, {"data.pcking=true"}); });
  CHECK(message ==
        "a.yaml:1:1: output_dir: required key is missing\n"
        "a.yaml:1:7: kind: found 'cosin', expected one of constant, linear, cosine; did you mean 'cosine'?\n"
        "a.yaml:3:3: lora.rnak: unknown key; did you mean 'rank'?\n"
        "a.yaml:5:7: seed: found 'abc', expected an integer\n"
        "a.yaml:6:1: seed: key is given twice; the first is in line 5\n"
        "command line: data.pcking: unknown key; did you mean 'packing'?\n"
        "6 problems in a.yaml; nothing was run");
}

TEST_CASE("config reader: a single problem is counted in the singular", "[base]") {
  CHECK(message_of<ConfigError>([] { read("seed: 1"); }).ends_with("\n1 problem in a.yaml; nothing was run"));
}

TEST_CASE("config reader: broken YAML stops at once with all that is known", "[base]") {
  CHECK(message_of<ConfigError>([] { ConfigReader::parse("seed: 1\nseed: 2\nb 2\nc: 3\n", "a.yaml"); }) ==
        "a.yaml:2:1: seed: key is given twice; the first is in line 1\n"
        "a.yaml:4:2: broken YAML: unexpected key; check its indentation, and that the line before has a ':'\n"
        "2 problems in a.yaml; nothing was run");
  CHECK(issues("- a\n- b\n") == "a.yaml:1:1: found a list, expected 'key: value' lines");
  CHECK(issues("hello") == "a.yaml:1:1: found 'hello', expected 'key: value' lines");
  CHECK(issues("a: \xFF") == "a.yaml:1:1: the line is not valid UTF-8; save the file as UTF-8");
}

TEST_CASE("config reader: a file is read by its path, and a missing one is an input error", "[base]") {
  const TemporaryFolder folder;
  const std::string path = folder / "r.yaml";
  write_text(path, "seed: x\n");
  ConfigReader reader = ConfigReader::open(path);
  std::int64_t seed = 0;
  reader.required("seed", seed);
  CHECK(reader.issues() == std::vector<std::string>{path + ":1:7: seed: found 'x', expected an integer"});
  CHECK(message_of<InputError>([&] { ConfigReader::open(folder / "none.yaml"); }) ==
        (folder / "none.yaml").string() + ": cannot read: No such file or directory; check the path");
}

TEST_CASE("config reader: every scalar type can be required", "[base]") {
  ConfigReader reader = ConfigReader::parse("a: 1\nb: 2.5\nc: true\nd: x\ne: [y]\n", "a.yaml");
  std::int64_t a = 0;
  double b = 0.0;
  bool c = false;
  std::string d;
  std::vector<std::string> e;
  reader.required("a", a), reader.required("b", b), reader.required("c", c), reader.required("d", d);
  reader.required("e", e);
  CHECK_NOTHROW(reader.finish());
  CHECK((a == 1 && b == 2.5 && c && d == "x" && e == std::vector<std::string>{"y"}));

  ConfigReader empty = ConfigReader::parse("", "a.yaml");
  empty.required("a", a), empty.required("b", b), empty.required("c", c), empty.required("d", d);
  empty.required("e", e);
  CHECK(empty.issues().size() == 5);
}

// ---- Overrides

TEST_CASE("overrides: a dotted path sets, adds and goes through lists", "[base]") {
  const Recipe recipe = read(kFullText, {"seed=5", "lora.rank=2", "data.train.1.path=z=1.jsonl", "data.packing=true",
                                         "trainable=[router, \"*.x\"]", "trainable.0=dag", "steps=7", "steps=9"});
  CHECK(recipe.seed == 5);
  CHECK(recipe.lora->rank == 2);
  CHECK(recipe.lora->alpha == 32.0);
  CHECK(recipe.data.train[1].path == "z=1.jsonl");
  CHECK(recipe.data.packing);
  CHECK(recipe.trainable == std::vector<std::string>{"dag", "*.x"});
  CHECK(recipe.steps == 9);
}

TEST_CASE("overrides: mappings on the way are made, and whole values can be given", "[base]") {
  const Recipe recipe = read("", {"output_dir=o", "lora.targets=[a]", "data={train: [{path: p}]}"});
  CHECK(recipe.lora->targets == std::vector<std::string>{"a"});
  CHECK(recipe.data.train.at(0).path == "p");
}

TEST_CASE("overrides: null takes an optional section away", "[base]") {
  CHECK_FALSE(read(kFullText, {"lora=null"}).lora);
  CHECK_FALSE(read(kFullText, {"steps="}).steps);
}

TEST_CASE("overrides: they are checked like the file, with the command line as their place", "[base]") {
  CHECK(issues_behind("", {"lora.rnak=3", "lora.targets=[]"}) ==
        "command line: lora.rnak: unknown key; did you mean 'rank'?");
  CHECK(issues_behind("lora: {targets: []}", {"lora.rnak=3"}) ==
        "command line: lora.rnak: unknown key; did you mean 'rank'?");
  CHECK(issues_behind("lora: {targets: [], rank: 4}", {"lora.rank=0"}) ==
        "command line: lora.rank: found 0, expected between 1 and 4096");
  CHECK(issues_behind("", {"seed=abc"}) == "command line: seed: found 'abc', expected an integer");
  CHECK(issues_behind("", {"lora.rank=3"}) == "command line: lora.targets: required key is missing");
  CHECK(issues_behind("", {"betas=[1, x]"}) == "command line: betas.1: found 'x', expected a number");
  CHECK(issues_behind("", {"lora={targets: [], rank: 1, rank: 2}"}) ==
        "command line: lora.rank: key is given twice; the first is in line 1");
}

TEST_CASE("overrides: a path that leads nowhere is told", "[base]") {
  CHECK(issues(kFullText, {"data.train.2.path=x"}) ==
        "command line: data.train.2.path: 'data.train' is a list of 2, counted from 0; found '2', expected an index");
  CHECK(issues(kFullText, {"data.train.path=x"}) ==
        "command line: data.train.path: 'data.train' is a list of 2, counted from 0; found 'path', expected an index");
  CHECK(issues(kFullText, {"seed.x=1"}) == "command line: seed.x: 'seed' is no mapping");
  CHECK(issues(kFullText, {"lora..rank=1"}) == "command line: lora..rank: the path has an empty part");
  CHECK(issues(kFullText, {"=1"}).find("the path has an empty part") != std::string::npos);
}

TEST_CASE("overrides: a text that is no key=value and a value that is no YAML are told", "[base]") {
  CHECK(issues_behind("", {"--steps"}) == "command line: found '--steps', expected key=value");
  CHECK(issues_behind("", {"trainable=[*.dag.*]"}) ==
        "command line: trainable: aliases are not supported; a text that starts with '*' needs quotes");
  CHECK(issues_behind("", {"note=[a"}).find("command line: note: broken YAML: expected ',' or ']'") == 0);
  CHECK(issues_behind("", {"note=\xFF"}).find("command line: note: the line is not valid UTF-8") == 0);
}

// ---- Places and checks between fields

TEST_CASE("config reader: a problem that only the program sees is told at the field's place", "[base]") {
  ConfigReader reader = ConfigReader::parse(kFullText, "a.yaml");
  reader.issue("data.train.1.format", "unknown format");
  reader.issue("trainable.1", "matches no parameter");
  reader.issue("schedule.warmup", "is more than steps");
  reader.issue("", "nothing to do");
  CHECK(reader.issues() == std::vector<std::string>{
                               "a.yaml:2:1: schedule.warmup: is more than steps",
                               "a.yaml:2:1: nothing to do",
                               "a.yaml:4:18: trainable.1: matches no parameter",
                               "a.yaml:10:31: data.train.1.format: unknown format",
                           });
}

TEST_CASE("config reader: place and has answer for keys, dotted paths and what is absent", "[base]") {
  const ConfigReader reader = ConfigReader::parse(kFullText, "a.yaml", std::vector<std::string>{"steps=3"});
  CHECK(reader.place("kind") == "a.yaml:13:7");
  CHECK(reader.place("data.train.0.weight") == "a.yaml:9:15");
  CHECK(reader.place("data.train.7") == "a.yaml:8:5");
  CHECK(reader.place("steps") == "command line");
  CHECK(reader.place("none") == "a.yaml:2:1");
  CHECK(reader.place("") == "a.yaml:2:1");
  CHECK(reader.has("seed"));
  CHECK(reader.has("data.train.1"));
  CHECK_FALSE(reader.has("data.train.2"));
  CHECK_FALSE(reader.has("none.x"));
  CHECK_FALSE(ConfigReader::parse("a: null", "a.yaml").has("a"));
}

TEST_CASE("config reader: asking whether a key is there does not make it known", "[base]") {
  ConfigReader reader = ConfigReader::parse("a: 1", "a.yaml");
  CHECK(reader.has("a"));
  CHECK(message_of<ConfigError>([&] { reader.finish(); }).find("a.yaml:1:1: a: unknown key") == 0);
}

TEST_CASE("config reader: keys and values with control characters stay on one line of the message", "[base]") {
  CHECK(issues_behind("seed: \"a\\nb\\e[0m\"") == "a.yaml:2:7: seed: found 'a\\nb\\x1b[0m', expected an integer");
  CHECK(issues_behind("\"a\\nb\": 1").find('\n') == std::string::npos);
}

// ---- Writer

TEST_CASE("config writer: block YAML with every field", "[base]") {
  Recipe recipe = read(kFullText);
  CHECK(write(recipe) == R"(seed: -3
output_dir: runs/a
trainable: [dag, "model.layers.[8-15].*"]
lora:
  rank: 16
  alpha: 32.0
  dropout: 0.0
  targets: [attention, experts]
data:
  train:
    - path: x.jsonl
      format: alpaca
      weight: 0.25
    - path: y.jsonl
      format: chat
      weight: 1.0
  packing: false
betas: [0.8, 1.0]
kind: cosine
max_grad_norm: 1.0
steps: 200
note: "no"
)");
}

TEST_CASE("config writer: what it writes reads back equal", "[base]") {
  const Recipe full = read(kFullText);
  CHECK(read(write(full)) == full);
  const Recipe bare = read("output_dir: x\ntrainable: []\nbetas: []\n");
  CHECK(write(bare).find("  train: []\n") != std::string::npos);
  CHECK(read(write(bare)) == bare);
}

namespace {

struct Empty {
  bool operator==(const Empty&) const = default;
};
struct Holder {
  std::optional<Empty> one;
  std::vector<Empty> many;
  Empty always;
  bool operator==(const Holder&) const = default;
};

template <class Fields>
void bind(Fields&, Empty&) {}

template <class Fields>
void bind(Fields& fields, Holder& holder) {
  fields.section("one", holder.one);
  fields.section("many", holder.many);
  fields.section("always", holder.always);
}

}  // namespace

TEST_CASE("config writer: sections and items without fields are written as empty mappings", "[base]") {
  Holder holder;
  holder.one.emplace();
  holder.many.resize(2);
  ConfigWriter writer;
  bind(writer, holder);
  CHECK(writer.text() == "one: {}\nmany:\n  - {}\n  - {}\nalways: {}\n");
  Holder back;
  ConfigReader reader = ConfigReader::parse(writer.text(), "a.yaml");
  bind(reader, back);
  CHECK_NOTHROW(reader.finish());
  CHECK(back == holder);
}

TEST_CASE("config writer: text that could be read as something else is quoted", "[base]") {
  const auto note = [](const std::string& text) {
    ConfigWriter writer;
    writer.optional("note", text);
    return writer.text();
  };
  for (const std::string plain : {"a", "runs/a_b-c.d", "two words", "../x", "x1", "2024/x", "v1.0", "/abs/path"}) {
    CHECK(note(plain) == "note: " + plain + "\n");
  }
  for (const std::string quoted :
       {"",     " a",   "a ",  "a: b", "a #b", "-",    "- a",  "*.x",   "&a",         "!a",   "[a]", "{a}", "1",
        "-1",   "1.5",  "1e3", "0x1F", ".5",   ".inf", ".nan", "1_000", "2024-01-01", "true", "No",  "ON",  "y",
        "null", "NULL", "~",   "a,b",  "'a'",  "<<",   "=",    "%a",    "@a",         "`a`",  "---", "..."}) {
    CHECK(note(quoted) == "note: \"" + quoted + "\"\n");
  }
  CHECK(note("a\"b\\c\nd\te\x01\x7F") == "note: \"a\\\"b\\\\c\\nd\\x09e\\x01\\x7F\"\n");
}

TEST_CASE("config writer: every text of random characters reads back equal", "[base]") {
  std::mt19937 random(17);
  constexpr std::string_view kPieces[] = {
      "a", "Z",  "1",  "0",  ".",  "-",  "_",    "/", " ", ":",        "#",
      "'", "\"", "\\", "\n", "\t", "\r", "\x04", "{", "[", "\xC3\xA9", "\xF0\x9F\x98\x80",
      ",", "!",  "*",  "&",  "|",  ">",  "%",    "~", "e", "\xC2\x85", "\xE2\x80\xA8"};
  for (int round = 0; round < 3000; ++round) {
    Recipe recipe;
    for (std::size_t length = random() % 8; length > 0; --length)
      recipe.output_dir += kPieces[random() % std::size(kPieces)];
    recipe.trainable = {recipe.output_dir, "x" + recipe.output_dir};
    INFO(quoted_for_message(recipe.output_dir));
    REQUIRE(read(write(recipe)) == recipe);
  }
}

TEST_CASE("config writer: every double reads back equal, in its shortest form", "[base]") {
  const auto text = [](double value) {
    ConfigWriter writer;
    writer.optional("x", value);
    return writer.text();
  };
  CHECK(text(0.1) == "x: 0.1\n");
  CHECK(text(2e-5) == "x: 2.0e-05\n");
  CHECK(text(1e22) == "x: 1.0e+22\n");
  CHECK(text(3.0) == "x: 3.0\n");
  CHECK(text(-0.0) == "x: -0.0\n");
  std::mt19937_64 random(17);
  for (int round = 0; round < 3000; ++round) {
    const double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    ConfigReader reader = ConfigReader::parse(text(value), "a.yaml");
    double back = 0.0;
    reader.required("x", back);
    INFO(text(value));
    REQUIRE(reader.issues().empty());
    REQUIRE(back == value);
  }
}

TEST_CASE("config writer: the largest and smallest numbers read back equal", "[base]") {
  Recipe recipe;
  recipe.output_dir = "x";
  for (const std::int64_t seed : {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
    recipe.seed = seed;
    CHECK(read(write(recipe)) == recipe);
  }
  recipe.betas = {std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::max(),
                  std::numeric_limits<double>::lowest()};
  CHECK(read(write(recipe)) == recipe);
}

TEST_CASE("config writer: a value that is not finite is a bug of ours", "[base]") {
  ConfigWriter writer;
  CHECK_THROWS_AS(writer.optional("x", std::numeric_limits<double>::quiet_NaN()), InternalError);
}

TEST_CASE("config: a list of integers is written and read as integers", "[base]") {
  const std::vector<std::int64_t> ranks{4, -2, 0};
  ConfigWriter writer;
  writer.optional("ranks", ranks);
  CHECK(writer.text() == "ranks: [4, -2, 0]\n");
  std::vector<std::int64_t> back{7};
  ConfigReader reader = ConfigReader::parse(writer.text(), "a.yaml");
  reader.optional("ranks", back);
  CHECK_NOTHROW(reader.finish());
  CHECK(back == ranks);
  ConfigReader broken = ConfigReader::parse("ranks: [1, 2.0]", "a.yaml");
  broken.optional("ranks", back);
  CHECK(broken.issues() == std::vector<std::string>{"a.yaml:1:12: ranks.1: found '2.0', expected an integer"});
  ConfigReader single = ConfigReader::parse("ranks: 3", "a.yaml");
  single.optional("ranks", back);
  CHECK(single.issues() == std::vector<std::string>{"a.yaml:1:8: ranks: found '3', expected a list of integers"});
}
