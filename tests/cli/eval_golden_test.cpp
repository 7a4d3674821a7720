// Every task of the evaluation against lm-evaluation-harness 0.4.13, from files in the upstream layouts to the scores:
// tests/golden/lm_eval_tasks, made by make_lm_eval_tasks.py. Two models are committed; SmolLM2 (DAGMOE_SMOLLM2, else
// the download cache) is checked where it is.
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/text.h"
#include "tests/support/tiny_model.h"
// Behind LibTorch, whose CHECK ends the program.
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

namespace fs = std::filesystem;

// lm-evaluation-harness sums floats, so a score of 100 nats is good to about this.
constexpr double kLogLikelihoodTolerance = 1e-3;
// Perplexities are exponentials of means of such scores.
constexpr double kPerplexityTolerance = 2e-4;
constexpr std::size_t kHashDigits = 12;

const fs::path kGolden = fs::path(DAGMOE_SOURCE_DIR) / "tests" / "golden";

/// The committed model with the tokenizer of the golden folder and the settings of the expected file.
fs::path assemble_model(const TemporaryFolder& folder, const std::string& name, const Json& expected) {
  const fs::path model = folder / "model";
  fs::create_directories(model);
  const fs::path base = kGolden / expected["base"].get<std::string>();
  fs::copy_file(base / "model.safetensors", model / "model.safetensors");
  for (const auto& entry : fs::directory_iterator(kGolden / "lm_eval_tasks" / name))
    fs::copy_file(entry.path(), model / entry.path().filename());
  Json config = read_json_file(base / "config.json");
  config.update(expected["config"]);
  write_text(model / "config.json", config.dump(2));
  return model;
}

/// "data/x.jsonl,data/x.lst" with the folder in front of each file.
std::string absolute_files(const std::string& files) {
  std::vector<std::string> paths;
  for (const std::string& file : split(files, ',')) {
    const fs::path root =
        file.starts_with("quickstart/") ? fs::path(DAGMOE_SOURCE_DIR) / "datasets" : kGolden / "lm_eval_tasks";
    paths.push_back((root / file).string());
  }
  return join(paths, ",");
}

struct Samples {
  std::map<std::string, std::vector<Json>> by_filter;
};

Samples read_samples(const fs::path& file) {
  Samples samples;
  std::istringstream lines(read_text(file));
  for (std::string line; std::getline(lines, line);) {
    const Json sample = parse_json(line, file.string());
    samples.by_filter[sample["filter"]].push_back(sample);
  }
  return samples;
}

double number_of(const Json& value) {
  return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}

void check_scores(const Json& expected, const Json& sample) {
  REQUIRE(sample["resps"].size() == expected.size());
  for (std::size_t r = 0; r < expected.size(); ++r) {
    INFO("request " << r << ": " << sample["resps"][r].dump());
    const Json& response = sample["resps"][r][0];
    const bool has_flag = expected[r].size() == 2;
    CHECK(number_of(has_flag ? response[0] : response) ==
          Approx(expected[r][0].get<double>()).margin(kLogLikelihoodTolerance).epsilon(0.0));
    if (has_flag) CHECK((response[1].get<std::string>() == "True") == expected[r][1].get<bool>());
  }
}

void check_sample(const Json& expected, const Json& sample) {
  INFO("document " << sample["doc_id"]);
  INFO("arguments " << sample["arguments"].dump());
  CHECK(sample["prompt_hash"].get<std::string>().substr(0, kHashDigits) == expected[0].get<std::string>());
  INFO("target " << sample["target"].dump());
  CHECK(sample["target_hash"].get<std::string>().substr(0, kHashDigits) == expected[1].get<std::string>());
  const Json& answers = expected[2];
  if (answers[0].is_array()) {
    check_scores(answers, sample);
  } else {
    CHECK(sample["resps"][0][0] == answers[0]);
    CHECK(sample["filtered_resps"][0] == answers[1]);
  }
}

void check_results(const Json& expected, const Json& found) {
  for (const auto& [key, value] : expected.items()) {
    INFO(key << ": expected " << value.dump() << ", found " << (found.contains(key) ? found[key].dump() : "nothing"));
    REQUIRE(found.contains(key));
    if (!value.is_number()) {
      CHECK(found[key] == value);
      continue;
    }
    const bool is_perplexity = key.find("perplexity") != std::string::npos || key.starts_with("bits_per_byte");
    REQUIRE(found[key].is_number());
    CHECK(found[key].get<double>() ==
          Approx(value.get<double>()).epsilon(is_perplexity ? kPerplexityTolerance : 1e-12).margin(1e-12));
  }
}

void run_program(const TemporaryFolder& folder, const std::string& arguments) {
  const std::string command = std::string(DAGMOE_BINARY_DIR) + "/dagmoe eval " + arguments + " >" +
                              (folder / "out").string() + " 2>" + (folder / "err").string() + " </dev/null";
  const int status = std::system(command.c_str());
  INFO(arguments << "\n" << read_text(folder / "err"));
  REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

void check_model(const fs::path& model, const Json& expected, const TemporaryFolder& folder) {
  std::map<std::int64_t, std::vector<Json>> runs;
  for (const Json& run : expected["runs"]) runs[run["shots"].get<std::int64_t>()].push_back(run);
  for (const auto& [shots, group] : runs) {
    std::vector<std::string> tasks;
    std::string flags;
    for (const Json& run : group) {
      const std::string task = run["task"];
      tasks.push_back(task);
      flags += " --dataset " + task + "=" + absolute_files(run["dataset"]);
      if (run["fewshot"].is_string()) flags += " --fewshot " + task + "=" + absolute_files(run["fewshot"]);
    }
    const fs::path output = folder / ("output_" + std::to_string(shots));
    run_program(folder, "--model " + model.string() + " --tasks " + join(tasks, ",") + " --num-fewshot " +
                            std::to_string(shots) + " --limit " + std::to_string(expected["documents"].get<int>()) +
                            " --log-samples --output " + output.string() + flags);
    const Json results = read_json_file(output / "results.json");
    for (const Json& run : group) {
      const std::string task = run["task"];
      INFO(task << ", " << shots << " shots");
      check_results(run["results"], results["results"][task]);
      CHECK(number_of(run["version"].is_number() ? run["version"] : Json(0)) ==
            (results["versions"][task].is_number() ? results["versions"][task].get<double>() : 0.0));
      Samples samples = read_samples(output / ("samples_" + task + ".jsonl"));
      for (const auto& [filter, rows] : run["samples"].items()) {
        INFO("filter " << filter);
        const std::vector<Json>& found = samples.by_filter[filter];
        REQUIRE(found.size() == rows.size());
        for (std::size_t d = 0; d < rows.size(); ++d) {
          check_sample(rows[d], found[d]);
          CHECK(found[d]["doc_hash"].get<std::string>().substr(0, kHashDigits) ==
                run["doc_hashes"][d].get<std::string>());
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("eval golden: a Mixtral answers every task as in lm-eval", "[cli]") {
  const TemporaryFolder folder;
  const Json expected = read_json_file(kGolden / "lm_eval_tasks" / "expected_mixtral.json");
  check_model(assemble_model(folder, "mixtral", expected), expected, folder);
}

TEST_CASE("eval golden: a DAG-MoE answers every task as in lm-eval", "[cli]") {
  const TemporaryFolder folder;
  const Json expected = read_json_file(kGolden / "lm_eval_tasks" / "expected_dagmoe.json");
  check_model(assemble_model(folder, "dagmoe", expected), expected, folder);
}

TEST_CASE("eval golden: SmolLM2 answers every task as in lm-eval", "[cli]") {
  const fs::path model = smollm2_folder();
  if (!fs::exists(model / "model.safetensors")) DAGMOE_SKIP("no model.safetensors in " + model.string());
  const TemporaryFolder folder;
  check_model(model, read_json_file(kGolden / "lm_eval_tasks" / "expected_smollm2.json"), folder);
}
