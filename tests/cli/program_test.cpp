// The program as a user calls it: exit codes, one clear line for every mistake, nothing written, and the main job on a
// tiny model.
#include <sys/wait.h>

#include <cstdio>
#include <string>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome dagmoe_run(const TemporaryFolder& folder, const std::string& arguments) {
  const std::string command = std::string(DAGMOE_BINARY_DIR) + "/dagmoe " + arguments + " >" +
                              (folder / "out").string() + " 2>" + (folder / "err").string() + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(folder / "out"), read_text(folder / "err")};
}

void require_one_line(const Outcome& outcome, int code, const std::string& text) {
  INFO("stderr: " << outcome.err);
  REQUIRE(outcome.code == code);
  REQUIRE_THAT(outcome.err, Catch::Contains(text));
  REQUIRE(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  REQUIRE(outcome.out.empty());
}

}  // namespace

TEST_CASE("program: --version and --help work on every level", "[cli]") {
  const TemporaryFolder folder;
  REQUIRE_THAT(dagmoe_run(folder, "--version").out, Catch::Contains("LibTorch 2."));
  for (const char* command :
       {"", "import", "upcycle", "finetune", "preview", "profile-experts", "eval", "generate", "inspect", "validate"}) {
    const Outcome outcome = dagmoe_run(folder, std::string(command) + " --help");
    INFO(command);
    REQUIRE(outcome.code == 0);
    REQUIRE_THAT(outcome.out, Catch::Contains("--help"));
  }
}

TEST_CASE("program: an unknown command, flag or task names the nearest and exits with 2", "[cli]") {
  const TemporaryFolder folder;
  require_one_line(dagmoe_run(folder, "fintune"), 2, "'fintune' is no command; did you mean 'finetune'?");
  require_one_line(dagmoe_run(folder, "inspect x --tensor"), 2, "--tensor");
  write_tiny_folder(folder / "model");
  require_one_line(dagmoe_run(folder, "eval --model " + (folder / "model").string() + " --tasks arc_esay"), 2,
                   "did you mean 'arc_easy'?");
}

TEST_CASE("program: damaged files are one line and exit code 3", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const std::string weights = read_text(folder / "model" / "model.safetensors");
  write_text(folder / "cut.safetensors", weights.substr(0, weights.size() / 2));
  require_one_line(dagmoe_run(folder, "inspect " + (folder / "cut.safetensors").string()), 3, "cut.safetensors");
  write_text(folder / "cut.gguf", std::string("GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0", 16));
  require_one_line(
      dagmoe_run(folder, "import " + (folder / "cut.gguf").string() + " --output " + (folder / "imported").string()), 3,
      "cut.gguf");
  REQUIRE_FALSE(std::filesystem::exists(folder / "imported"));
  require_one_line(dagmoe_run(folder, "inspect " + (folder / "nothing").string()), 3, "no such file or folder");

  // A truncated file inside a model folder, and one with a wrong dtype in its header.
  write_text(folder / "model" / "model.safetensors", weights.substr(0, weights.size() - 8));
  require_one_line(dagmoe_run(folder, "generate --model " + (folder / "model").string() + " --prompt x"), 3,
                   "model.safetensors");
  std::string wrong = weights;
  wrong.replace(wrong.find("\"F32\""), 5, "\"F99\"");
  write_text(folder / "model" / "model.safetensors", wrong);
  require_one_line(dagmoe_run(folder, "generate --model " + (folder / "model").string() + " --prompt x"), 3, "F99");
}

TEST_CASE("program: hostile files print the library's message, line for line, and exit with 3", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  // A name that would clear the screen and forge a second line.
  std::string weights = read_text(folder / "model" / "model.safetensors");
  weights.replace(weights.find("\"model.norm.weight\""), 19, "\"\\n\\u001b[2J forge\"");
  write_text(folder / "model" / "model.safetensors", weights);
  std::string expected;
  try {
    Checkpoint::open(folder / "model");
  } catch (const InputError& error) {
    expected = error.what();
  }
  const Outcome outcome = dagmoe_run(folder, "inspect " + (folder / "model").string());
  REQUIRE(outcome.code == 3);
  REQUIRE_THAT(outcome.out, Catch::Contains("unexpected          2 problems, listed below"));
  REQUIRE(outcome.err == expected + "\n");
  REQUIRE_THAT(expected, Catch::Contains("tensor '\\n\\x1b[2J forge' is not expected"));
  REQUIRE(std::count(expected.begin(), expected.end(), '\n') == 1);  // it and the norm that is missing

  // Sizes beside a 0 may be anything; their product is not made.
  const std::string header = R"({"a":{"dtype":"F32","shape":[4611686018427387904,2,0],"data_offsets":[0,0]}})";
  write_text(folder / "empty.safetensors",
             std::string(1, static_cast<char>(header.size())) + std::string(7, '\0') + header);
  const Outcome empty = dagmoe_run(folder, "inspect " + (folder / "empty.safetensors").string());
  REQUIRE(empty.code == 0);
  REQUIRE_THAT(empty.out, Catch::Contains("parameters          0"));
}

TEST_CASE("program: profile-experts writes what trainable: [esft] reads", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  write_tiny_folder(folder / "dense", /*dense=*/true);
  write_records(folder / "train.jsonl", 12);
  write_records(folder / "valid.jsonl", 3);
  const std::string selection = (folder / "selection.json").string();
  const auto profile = [&](const std::string& model, const std::string& more) {
    return dagmoe_run(folder, "profile-experts --model " + (folder / model).string() + " --data " +
                                  (folder / "train.jsonl").string() + " --output " + selection + more);
  };
  require_one_line(profile("model", " --score tokens"), 2,
                   "--score: found 'tokens', expected one of token, gate; did you mean 'token'?");
  require_one_line(profile("model", " --format alpac"), 2, "did you mean 'alpaca'?");
  require_one_line(profile("model", " --template chatm"), 2, "did you mean 'chatml'?");
  require_one_line(profile("model", " --top-p 1.5"), 2, "--top-p");
  require_one_line(profile("model", " --shared-experts"), 2, "--shared-experts: the model has no shared expert");
  require_one_line(profile("dense", ""), 2, "profile-experts: the model is dense");
  REQUIRE_FALSE(std::filesystem::exists(selection));

  const Outcome done = profile("model", " --max-tokens 500");
  REQUIRE(done.code == 0);
  REQUIRE_THAT(done.out, Catch::Contains("layer  experts  selected   share  which"));
  REQUIRE_THAT(done.out, Catch::Contains("score token: mean over tokens of 1 / K"));
  REQUIRE_THAT(done.out, Catch::Contains("selected until the sum reaches 0.2;"));
  const Json json = Json::parse(profile("model", " --max-tokens 500 --score gate --json").out);
  REQUIRE(json.at("top_p") == 0.1);  // the score's own
  REQUIRE(json == Json::parse(read_text(folder / "selection.profile.json")));
  REQUIRE(json.at("selection") == Json::parse(read_text(selection)));

  write_text(folder / "a.yaml", recipe_text(folder.path(), "steps: 1\nesft: {experts: " + selection + "}\n"));
  const Outcome plan = dagmoe_run(folder, "plan " + (folder / "a.yaml").string() + " trainable=[esft]");
  REQUIRE(plan.code == 0);
}

TEST_CASE("program: a misspelt recipe key is exit code 2 and a broken data line 3 and nothing but that line is written",
          "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  write_records(folder / "train.jsonl", 5);
  write_records(folder / "valid.jsonl", 3);
  write_text(folder / "typo.yaml", recipe_text(folder.path(), "max_grad_nrom: 1.0\n"));
  const Outcome typo = dagmoe_run(folder, "finetune " + (folder / "typo.yaml").string());
  REQUIRE(typo.code == 2);
  REQUIRE_THAT(typo.err, Catch::Contains("typo.yaml:14:1: max_grad_nrom: unknown key; did you mean 'max_grad_norm'?"));

  write_text(folder / "good.yaml", recipe_text(folder.path(), "steps: 1\n"));
  write_text(folder / "train.jsonl", read_text(folder / "train.jsonl") + "{\"instruction\": \"x\", \"output\n");
  const Outcome broken = dagmoe_run(folder, "finetune " + (folder / "good.yaml").string());
  REQUIRE(broken.code == 3);
  REQUIRE_THAT(broken.err, Catch::Contains("train.jsonl:6: "));
  REQUIRE(std::filesystem::exists(folder / "run" / "bad_records.jsonl"));
  REQUIRE(std::distance(std::filesystem::directory_iterator(folder / "run"), {}) == 1);
}

TEST_CASE("program: preview shows what is learnt, as text and as JSON, and writes nothing", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  write_records(folder / "train.jsonl", 12);
  write_records(folder / "valid.jsonl", 3);
  write_text(folder / "a.yaml", recipe_text(folder.path(), "steps: 1\n"));
  const std::string recipe = (folder / "a.yaml").string();
  const Outcome shown = dagmoe_run(folder, "preview " + recipe + " -n 2 data.shuffle=false");
  REQUIRE(shown.code == 0);
  REQUIRE_THAT(shown.out, Catch::StartsWith((folder / "train.jsonl").string() + ":1: 48 tokens, 12 learnt\n"));
  REQUIRE_THAT(shown.out, Catch::Contains("assistant\n[[aaaa bbbb 0<|im_end|>]]"));
  REQUIRE_THAT(shown.out, Catch::Contains("train.jsonl:2: "));
  REQUIRE_THAT(shown.out, !Catch::Contains("train.jsonl:3: "));
  REQUIRE_THAT(shown.out, Catch::Contains("the first 12 samples: 576 tokens, 144 learnt"));
  const Outcome all = dagmoe_run(folder, "preview " + recipe + " --all --json -n 0");
  REQUIRE(all.code == 0);
  const Json json = Json::parse(all.out);
  REQUIRE(json["all"] == true);
  REQUIRE(json["tokens"] == 576);
  REQUIRE(json["samples"].empty());
  REQUIRE_FALSE(std::filesystem::exists(folder / "run"));
  require_one_line(dagmoe_run(folder, "preview " + recipe + " data.train.0.path=no_such.jsonl"), 3,
                   "no_such.jsonl: no such file; it is listed under data in ");
}

TEST_CASE("program: validate reports every file and exits with 2 when one is wrong", "[cli]") {
  const TemporaryFolder folder;
  write_text(folder / "good.yaml", recipe_text(folder.path(), "steps: 1\n"));
  write_text(folder / "bad.yaml", "version: 1\n");
  const Outcome outcome =
      dagmoe_run(folder, "validate " + (folder / "good.yaml").string() + " " + (folder / "bad.yaml").string());
  REQUIRE(outcome.code == 2);
  REQUIRE_THAT(outcome.out, Catch::Contains("good.yaml: ok"));
  REQUIRE_THAT(outcome.err, Catch::Contains("output_dir: required key is missing"));
}

TEST_CASE("program: upcycle, finetune, eval, generate and inspect work in a row", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "dense", /*dense=*/true);
  const Outcome upcycled =
      dagmoe_run(folder, "upcycle --source " + (folder / "dense").string() + " --output " +
                             (folder / "model").string() + " --experts 4 --top-k 2 --dag-node-size 4");
  INFO(upcycled.err);
  REQUIRE(upcycled.code == 0);
  REQUIRE_THAT(upcycled.out, Catch::Contains("max |logit difference|"));

  write_records(folder / "train.jsonl", 30);
  write_records(folder / "valid.jsonl", 6);
  write_text(folder / "a.yaml", recipe_text(folder.path(), "steps: 4\n"));
  const Outcome tuned = dagmoe_run(folder, "finetune " + (folder / "a.yaml").string());
  INFO(tuned.err);
  REQUIRE(tuned.code == 0);
  const Json result = Json::parse(tuned.out);
  REQUIRE(result["steps"] == 4);
  const std::string model = result["output"].get<std::string>();

  const std::string eval_flags =
      " --tasks piqa,valid_loss --limit 3 --data-dir " + std::string(DAGMOE_SOURCE_DIR) + "/datasets --output ";
  const Outcome before =
      dagmoe_run(folder, "eval --model " + (folder / "model").string() + eval_flags + (folder / "before").string());
  INFO(before.err);
  REQUIRE(before.code == 0);
  const Outcome after = dagmoe_run(folder, "eval --model " + model + eval_flags + (folder / "after").string() +
                                               " --compare " + (folder / "before" / "results.json").string());
  REQUIRE(after.code == 0);
  REQUIRE_THAT(after.out, Catch::Contains("piqa") && Catch::Contains("valid_loss"));

  const Outcome text =
      dagmoe_run(folder, "generate --model " + model + " --chat --prompt Hi --max-new-tokens 5 --json");
  REQUIRE(text.code == 0);
  REQUIRE(Json::parse(text.out)["new_tokens"].get<int>() <= 5);
  const std::string named = "generate --model " + model + " --chat --prompt Hi --max-new-tokens 5 --chat-template ";
  REQUIRE(dagmoe_run(folder, named + "deepseek --json").code == 0);
  const Outcome unknown = dagmoe_run(folder, named + "lama-2");
  REQUIRE(unknown.code == 2);
  REQUIRE_THAT(unknown.err, Catch::Contains("--chat-template: found 'lama-2', expected one of alpaca, ") &&
                                Catch::Contains("llama-2"));
  REQUIRE_THAT(dagmoe_run(folder, "inspect " + model).out,
               Catch::Contains("dagmoe on mixtral") && Catch::Contains("byte-level BPE") && Catch::Contains("chatml") &&
                   Catch::Contains("per expert") && Catch::Contains("unexpected          nothing"));
  const Outcome file = dagmoe_run(folder, "inspect --tensors " + model + "/model.safetensors");
  REQUIRE(file.code == 0);
  REQUIRE_THAT(file.out, Catch::Contains("model.layers.0.mlp.dag.0.up_proj.weight"));
}

TEST_CASE("program: tasks inside a run are scored as dagmoe eval scores its result", "[cli]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  write_records(folder / "train.jsonl", 30);
  write_records(folder / "valid.jsonl", 6);
  const std::string data = std::string(DAGMOE_SOURCE_DIR) + "/datasets";
  write_text(folder / "a.yaml", recipe_text(folder.path(),
                                            "steps: 4\neval: {every_steps: 2, tasks: [piqa, arc_easy], "
                                            "limit: 5, data_dir: " +
                                                data + "}\n"));
  const std::string recipe = (folder / "a.yaml").string();
  const Outcome tuned = dagmoe_run(folder, "finetune " + recipe);
  INFO(tuned.err);
  REQUIRE(tuned.code == 0);
  std::vector<Json> scores;
  std::istringstream lines(read_text(folder / "run" / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const Json entry = Json::parse(line);
    if (entry.contains("scores")) scores.push_back(entry);
  }
  REQUIRE(scores.size() == 3);  // before, after step 2, at the end
  REQUIRE(scores.back()["step"] == 4);

  const Outcome scored = dagmoe_run(folder, "eval --json --tasks piqa,arc_easy --limit 5 --data-dir " + data +
                                                " --model " + Json::parse(tuned.out)["output"].get<std::string>());
  REQUIRE(scored.code == 0);
  const Json results = Json::parse(scored.out)["results"];
  for (const char* task : {"piqa", "arc_easy"}) {
    for (const char* metric : {"acc", "acc_norm"}) {
      INFO(task << " " << metric);
      REQUIRE(scores.back()["scores"][task][metric] == results[task][std::string(metric) + ",none"]);
    }
  }

  // What is missing is said before the first step.
  const std::string into = " output_dir=" + (folder / "other").string();
  require_one_line(dagmoe_run(folder, "finetune " + recipe + into + " eval.data_dir=/nowhere"), 3,
                   "eval.tasks lists piqa");
  REQUIRE(dagmoe_run(folder, "finetune " + recipe + into + " eval.tasks=[arc_esay]").code == 2);
  REQUIRE_FALSE(std::filesystem::exists(folder / "other"));
}
