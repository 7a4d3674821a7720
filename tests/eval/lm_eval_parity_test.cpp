// Log-likelihoods of lm-evaluation-harness 0.4.13, tests/golden/make_lm_eval*.py, against ours in fp32. Needs SmolLM2
// as a model folder (DAGMOE_SMOLLM2, else the download cache) and, for the tasks, the shared data sets (DAGMOE_SHARED,
// else beside the repository).
#include <ATen/ATen.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/tokenizer.h"
#include "eval/evaluate.h"
#include "eval/model_runner.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

// lm-evaluation-harness sums floats, so a score of 100 nats is good to about this.
constexpr double kTolerance = 1e-3;

fs::path environment_path(const char* name, const fs::path& fallback) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? fs::path(value) : fallback;
}

fs::path smollm2_folder() {
  const fs::path home = environment_path("HOME", "/");
  return environment_path("DAGMOE_SMOLLM2",
                          environment_path("DAGMOE_CACHE", home / ".cache" / "dagmoe") / "models" / "smollm2");
}

fs::path shared_data() {
  return environment_path("DAGMOE_SHARED", fs::path(DAGMOE_SOURCE_DIR) / ".." / "shared") / "data";
}

Json golden(const char* name) { return read_json_file(fs::path(DAGMOE_SOURCE_DIR) / "tests" / "golden" / name); }

// This folder's tests do not link the checkpoint library: a file of whole float tensors is enough here.
class SmolLm2 {
 public:
  explicit SmolLm2(const fs::path& folder)
      : file_(MappedFile::open(folder / "model.safetensors")),
        model_(read_model_config(folder)),
        tokenizer_(load_tokenizer(folder)) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(file_->bytes().data());
    std::uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | bytes[i];
    const Json header = parse_json(file_->text().substr(8, header_bytes), "header");
    for (const auto& [name, tensor] : model_.parameters()) {
      const Json& entry = header.at(name);
      const at::ScalarType dtype = entry["dtype"] == "F32"    ? at::kFloat
                                   : entry["dtype"] == "BF16" ? at::kBFloat16
                                                              : at::kHalf;
      const auto shape = entry["shape"].get<std::vector<std::int64_t>>();
      const auto begin = entry["data_offsets"][0].get<std::uint64_t>();
      *tensor =
          at::from_blob(const_cast<unsigned char*>(bytes) + 8 + header_bytes + begin, shape, at::TensorOptions(dtype))
              .to(at::kFloat);
    }
  }
  ModelRunner runner(RunnerOptions options = {}) const { return {model_, *tokenizer_, options}; }

 private:
  std::shared_ptr<const MappedFile> file_;
  Decoder model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

void check_requests(const SmolLm2& model, const Json& rows, RunnerOptions options) {
  std::vector<LogLikelihoodRequest> requests;
  for (const Json& row : rows) requests.push_back({row["context"], row["continuation"]});
  const auto results = model.runner(options).log_likelihood(requests, {});
  for (std::size_t r = 0; r < rows.size(); ++r) {
    INFO(rows[r].dump());
    CHECK(results[r].log_prob == Approx(rows[r]["ll"].get<double>()).margin(kTolerance).epsilon(0.0));
    CHECK(results[r].is_greedy == rows[r]["is_greedy"].get<bool>());
  }
}

TEST_CASE("lm-eval parity: requests at the edges of the rules score as there", "[eval]") {
  const fs::path folder = smollm2_folder();
  if (!fs::exists(folder / "model.safetensors")) DAGMOE_SKIP("no model.safetensors in " + folder.string());
  const SmolLm2 model(folder);
  const Json expected = golden("lm_eval_requests.json");
  check_requests(model, expected["requests"], {});
  check_requests(model, expected["short_requests"], {.max_length = 16});
}

TEST_CASE("lm-eval parity: the first documents of three tasks score as there", "[eval]") {
  const fs::path folder = smollm2_folder(), data = shared_data();
  if (!fs::exists(folder / "model.safetensors")) DAGMOE_SKIP("no model.safetensors in " + folder.string());
  if (!fs::exists(data / "arc")) DAGMOE_SKIP("no shared data in " + data.string());
  const SmolLm2 model(folder);
  const Json expected = golden("lm_eval_smollm2.json")["tasks"];
  EvalOptions options;
  options.datasets["arc_easy"] = {data / "arc" / "ARC-Easy-Test.even.jsonl", {}};
  options.datasets["piqa"] = {data / "piqa" / "valid.even.jsonl", data / "piqa" / "valid-labels.even.lst"};
  options.datasets["hellaswag"] = {data / "hellaswag" / "hellaswag_val.even.txt", {}};
  for (const auto& [name, files] : options.datasets) {
    const Json& docs = expected[name]["docs"];
    options.limit = static_cast<double>(docs.size());
    ModelRunner runner = model.runner();
    const TaskConfig task = read_task(fs::path(DAGMOE_SOURCE_DIR) / "eval" / "tasks" / (name + ".yaml"));
    const TaskResult result = evaluate(task, runner, options);
    for (std::size_t d = 0; d < docs.size(); ++d) {
      REQUIRE(result.samples[d].answers.scores.size() == docs[d].size());
      for (std::size_t c = 0; c < docs[d].size(); ++c) {
        INFO(name << ", document " << d << ", choice " << c);
        CHECK(result.samples[d].answers.scores[c].log_prob ==
              Approx(docs[d][c][0].get<double>()).margin(kTolerance).epsilon(0.0));
        CHECK(result.samples[d].answers.scores[c].is_greedy == docs[d][c][1].get<bool>());
      }
    }
  }
}

}  // namespace
}  // namespace dagmoe
