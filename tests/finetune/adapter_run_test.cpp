// Runs whose result is an adapter: what they change, what they leave, how they go on and what they give back.
#include <ATen/ATen.h>

#include <set>

#include "base/text.h"
#include "checkpoint/merge.h"
#include "finetune/run.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

const std::string kLora = "steps: 6\nlora: {rank: 3, alpha: 6, targets: [attention, router, experts]}\n";

at::Tensor logits_of(const Decoder& model) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids_T = at::arange(3, 43);
  return model.logits(model.forward({ids_T, at::arange(40), {0, 40}}).hidden_TD);
}

at::Tensor logits_of_model(const std::filesystem::path& folder, at::ScalarType dtype = at::kFloat) {
  return logits_of(load_decoder(Checkpoint::open(folder), {.compute_dtype = dtype}));
}

at::Tensor logits_with(const std::filesystem::path& base, const std::filesystem::path& adapter,
                       at::ScalarType dtype = at::kFloat) {
  return logits_of(open_adapted(base, dtype, {adapter.string()}).model);
}

std::string bytes_of_weights(const std::filesystem::path& folder) {
  return read_text(folder / "adapter_model.safetensors");
}

// A mixtral without a DAG beside the fixture's model.
void write_plain_model(const std::filesystem::path& folder, std::uint64_t seed = 5) {
  ModelConfig config = tiny_folder_config();
  config.dag.reset();
  config.model_type = config.base_model_type = "mixtral";
  write_tiny_folder(folder, config, seed);
}

}  // namespace

TEST_CASE("adapter runs: a DAG trained alone is the same as an adapter and as a model, bit for bit", "[finetune]") {
  const TinyRun run;
  for (const auto& [dtype, type] : {std::pair{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}}) {
    INFO(dtype);
    const std::string name = dtype;
    const auto model = run_finetune(run.into("model_" + name, {str("dtype=", dtype)}), {}).output;
    const auto adapter =
        run_finetune(run.into("adapter_" + name, {str("dtype=", dtype), "save_as=adapter"}), {}).output;
    REQUIRE(at::equal(logits_with(run.folder / "model", adapter, type), logits_of_model(model, type)));
    REQUIRE_FALSE(at::equal(logits_of_model(run.folder / "model", type), logits_of_model(model, type)));
    const ModelConfig config = tiny_folder_config();
    const auto dag_bytes =
        static_cast<std::uintmax_t>(4 * config.num_hidden_layers * num_dag_parameters(*config.dag, config.hidden_size));
    const auto size = std::filesystem::file_size(adapter / "adapter_model.safetensors");
    REQUIRE(size > dag_bytes);
    REQUIRE(size < dag_bytes + 4096);  // the header
  }
}

TEST_CASE("adapter runs: a DAG that a run adds goes on a base without one", "[finetune]") {
  const TinyRun run;
  write_plain_model(run.folder / "plain");
  const std::vector<std::string> add{"model.path=" + (run.folder / "plain").string(), "model.dag.num_iterations=2",
                                     "model.dag.node_size=4"};
  auto as_adapter = add;
  as_adapter.emplace_back("save_as=adapter");
  const auto model = run_finetune(run.into("a", add), {}).output;
  const auto adapter = run_finetune(run.into("b", as_adapter), {}).output;
  REQUIRE(at::equal(logits_with(run.folder / "plain", adapter), logits_of_model(model)));
  // Beside it a LoRA adapter of the same base.
  const auto lora =
      run_finetune(run.into("c", {add[0], "trainable=[]", "lora.rank=2", "lora.targets=[q_proj]"}), {}).output;
  const auto both = logits_of(open_adapted(run.folder / "plain", at::kFloat, {adapter.string(), lora.string()}).model);
  REQUIRE_FALSE(at::equal(both, logits_of_model(model)));
}

TEST_CASE("adapter runs: another base is refused by its config and by its weights", "[finetune]") {
  const TinyRun run;
  const auto adapter = run_finetune(run.into("a", {"save_as=adapter"}), {}).output;
  write_tiny_folder(run.folder / "other", tiny_folder_config(), 99);
  REQUIRE_THROWS_WITH(open_adapted(run.folder / "other", at::kFloat, {adapter.string()}),
                      Catch::Contains("was trained on another base: the weights of") &&
                          Catch::Contains("give the model that it was trained on"));
  ModelConfig config = tiny_folder_config();
  config.rms_norm_eps *= 2;
  write_tiny_folder(run.folder / "config", config);
  REQUIRE_THROWS_WITH(open_adapted(run.folder / "config", at::kFloat, {adapter.string()}),
                      Catch::Contains("was trained on another base: the config.json of"));
}

TEST_CASE("adapter runs: LoRA starts without a change, lowers the loss, and merges to its own logits", "[finetune]") {
  const TinyRun run(kLora);
  for (const std::string more : {"lora.rslora=true", "lora.lr_ratio=4", "lora.targets=[down_proj, q_proj]"}) {
    INFO(more);
    const RunResult result = run_finetune(run.into("run_" + more, {"trainable=[]", more}), {});
    REQUIRE(result.valid_loss_after < result.valid_loss_before);
    const auto merged = run.folder / ("merged_" + more);
    const MergeReport report = merge_adapters(run.folder / "model", {result.output.string()}, merged, {});
    REQUIRE(report.is_written);
    REQUIRE(difference_text(logits_of_model(merged), logits_with(run.folder / "model", result.output), 1e-5, 1e-5) ==
            "");
  }
}

TEST_CASE("adapter runs: linears take DoRA, PiSSA and dropout", "[finetune]") {
  const TinyRun run("steps: 6\nlora: {rank: 3, alpha: 6, targets: [attention]}\n");
  const auto before = metrics_of(run_finetune(run.into("plain", {"trainable=[]"}), {}).output.parent_path());
  for (const std::string more : {"lora.kind=dora", "lora.init=pissa", "lora.dropout=0.3"}) {
    INFO(more);
    const RunResult result = run_finetune(run.into("run_" + more, {"trainable=[]", more}), {});
    const auto lines = metrics_of(result.output.parent_path());
    // The validation before the first step is the base's; PiSSA's delta is a difference of equal products.
    const double base = Json::parse(before[0]).at("valid_loss"), found = Json::parse(lines[0]).at("valid_loss");
    REQUIRE(found == Approx(base).epsilon(1e-6));
    REQUIRE(lines[1] != before[1]);
    REQUIRE(result.valid_loss_after < result.valid_loss_before);
    // What is written gives what was trained.
    const RunResult again = run_finetune(run.into("merge_" + more, {"trainable=[]", more}), {});
    REQUIRE(bytes_of_weights(again.output) == bytes_of_weights(result.output));
    const auto merged = run.folder / ("merged_" + more);
    REQUIRE(merge_adapters(run.folder / "model", {result.output.string()}, merged, {}).is_written);
  }
}

TEST_CASE("adapter runs: a resumed run equals an uninterrupted one bit for bit", "[finetune]") {
  const TinyRun run(kLora);
  for (const std::vector<std::string>& more : {std::vector<std::string>{},
                                               {"lora.targets=[attention]", "lora.dropout=0.2"},
                                               {"lora.targets=[attention]", "lora.init=pissa"},
                                               {"lora.targets=[attention]", "lora.kind=dora"},
                                               {"trainable=[dag, norms]"}}) {
    const std::string name = more.empty() ? "plain" : more.back();
    INFO(name);
    auto overrides = more;
    if (name.find("trainable") == std::string::npos) overrides.emplace_back("trainable=[]");
    const RunResult whole = run_finetune(run.into("whole_" + name, overrides), {});
    overrides.emplace_back("checkpoint.every_steps=1");
    std::int64_t steps = 0;
    const RunResult cut =
        run_finetune(run.into("cut_" + name, overrides), {.should_stop = [&steps] { return ++steps == 3; }});
    REQUIRE(cut.interrupted);
    const RunResult resumed = run_finetune(run.into("cut_" + name, overrides), {.resume = true});
    REQUIRE(bytes_of_weights(resumed.output) == bytes_of_weights(whole.output));
    REQUIRE(metrics_of(resumed.output.parent_path()) == metrics_of(whole.output.parent_path()));
  }
}

TEST_CASE("adapter runs: recomputed layers and micro batches give the same run", "[finetune]") {
  const TinyRun run(
      "steps: 3\nlora: {rank: 3, alpha: 6, targets: [attention, router, experts]}\nrouter_aux_loss_coef: 0.01\n");
  const std::vector<std::string> base{"trainable=[]"};
  const auto plain = run_finetune(run.into("plain", base), {}).output;
  const auto recomputed = run_finetune(run.into("recomputed", {base[0], "recompute=true"}), {}).output;
  REQUIRE(bytes_of_weights(recomputed) == bytes_of_weights(plain));
  const auto dropped =
      run_finetune(run.into("d", {base[0], "lora.targets=[attention]", "lora.dropout=0.2"}), {}).output;
  const auto dropped_again =
      run_finetune(run.into("e", {base[0], "lora.targets=[attention]", "lora.dropout=0.2", "recompute=true"}), {})
          .output;
  REQUIRE(bytes_of_weights(dropped_again) == bytes_of_weights(dropped));
}

TEST_CASE("adapter runs: what cannot be is refused in one line", "[finetune]") {
  const TinyRun run(kLora);
  const auto refuse = [&](const std::vector<std::string>& overrides, const std::string& message) {
    REQUIRE_THROWS_WITH(run_finetune(run.into("refused", overrides), {}), Catch::Contains(message));
  };
  refuse({"lora.targets=[atention]"}, "'atention' matches no linear layer of this model; did you mean 'attention'?");
  refuse({"lora.dropout=0.1"}, "dropout is not possible for 'router'");
  refuse({"lora.kind=dora"}, "kind dora is not possible for 'router'");
  refuse({"lora.init=pissa"}, "init pissa is not possible for 'router'");
  refuse({"trainable=[attention]"}, "trains in full and carries an adapter");
  refuse({"save_as=model"}, "a run with lora saves an adapter");
  refuse({"lora.kind=dora", "lora.init=pissa"}, "exclude each other");
  refuse({"lora.targets=[]"}, "targets: expected at least one");
}

TEST_CASE("adapter runs: the DAG trains in full beside an adapter, each at its own rate", "[finetune]") {
  const TinyRun run(
      "steps: 4\nlora: {rank: 3, alpha: 6, targets: [experts], patterns: [{target: gate_up_proj, rank: 2, alpha: "
      "3}]}\n");
  const auto result = run_finetune(run.into("run", {}), {}).output;
  const Json config = read_json_file(result / "adapter_config.json");
  REQUIRE(config.at("modules_to_save") == Json::array({"dag"}));
  REQUIRE(config.at("target_parameters") == Json::array({"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}));
  const AdaptedModel opened = open_adapted(run.folder / "model", at::kFloat, {result.string()});
  std::set<std::pair<std::string, std::int64_t>> ranks;
  for (const AdapterPart& part : opened.adapters[0].spec.parts)
    ranks.insert({part.target.module.substr(part.target.module.rfind('.') + 1), part.rank});
  REQUIRE(ranks == std::set<std::pair<std::string, std::int64_t>>{{"gate_up_proj", 2}, {"down_proj", 3}});
  REQUIRE_FALSE(opened.adapters[0].full.empty());
  REQUIRE_FALSE(opened.adapters[0].dag->num_iterations == 0);
  // A rate of zero for one of them leaves it where it was.
  const auto frozen = run_finetune(run.into("frozen", {"trainable=[dag, {group: lora, lr: 0.0}]"}), {}).output;
  const AdaptedModel still = open_adapted(run.folder / "model", at::kFloat, {frozen.string()});
  for (const auto& [name, factor] : still.adapters[0].factors) {
    if (name.ends_with("lora_B.weight")) REQUIRE(factor.abs().max().item<double>() == 0.0);
  }
}
