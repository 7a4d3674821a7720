// ESFT from profile to training: what is measured equals the routing of the forward pass, what is selected is what
// trains, and nothing else changes.
#include "finetune/expert_profile.h"

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "finetune/run.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "finetune/trainer.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::int64_t kMaxTokens = 700;

struct ProfileFixture : TinyRun {
  using TinyRun::TinyRun;
  std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(folder / "model");
  Decoder model = load_decoder(Checkpoint::open(folder / "model"), {});
  ExampleStream stream() const {
    return {{{.path = folder / "train.jsonl", .format = RecordFormat::kAlpaca, .chat = {}}}, *tokenizer, {.seed = 4}};
  }
  ExpertProfile profile(EsftScore score, double top_p) const {
    ExpertProfile result{.model = (folder / "model").string(), .data = {"train.jsonl"}};
    result.score = score, result.top_p = top_p;
    ExampleStream examples = stream();
    result.totals = profile_experts(model, examples, {.max_tokens = kMaxTokens, .micro_batch_tokens = 250});
    result.selection = select_experts(result.totals, score, top_p);
    return result;
  }
  std::string file(const char* name) const { return (folder / name).string(); }
};

// The same model with the experts of a layer in two tensors, as transformers 5 writes it.
void write_fused_folder(const std::filesystem::path& folder, const ModelConfig& config) {
  write_tiny_folder(folder, config);
  std::filesystem::remove(folder / "model.safetensors");
  Decoder model(config);
  initialize_parameters(model, 5);
  const auto parameters = model.parameters();
  std::vector<TensorSource> tensors;
  for (const DiskTensor& disk : disk_tensors(config, ExpertLayout::kFused)) {
    std::vector<at::Tensor> parts;
    for (const std::size_t index : disk.parameters) parts.push_back(parameters.at(index).tensor->flatten());
    const at::Tensor tensor = at::cat(parts);
    tensors.push_back({disk.name, DType::kF32, disk.shape, [tensor] {
                         return std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
                       }});
  }
  write_safetensors(folder / "model.safetensors", std::move(tensors));
}

// Our names of the parameters whose values two model folders do not share.
std::set<std::string> changed_parameters(const std::filesystem::path& before, const std::filesystem::path& after) {
  Decoder a = load_decoder(Checkpoint::open(before), {}), b = load_decoder(Checkpoint::open(after), {});
  const auto x = a.parameters(), y = b.parameters();
  std::set<std::string> names;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!at::equal(*x[i].tensor, *y[i].tensor)) names.insert(x[i].name);
  }
  return names;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

const char* const kSelection = R"({"experts": {"0": [1, 3], "1": [0]}})";
std::set<std::string> selected_names() {
  std::set<std::string> names;
  for (const char* expert : {"0.mlp.experts.1", "0.mlp.experts.3", "1.mlp.experts.0"}) {
    for (const char* part : {"gate_proj", "up_proj", "down_proj"})
      names.insert(str("model.layers.", expert, ".", part, ".weight"));
  }
  return names;
}

}  // namespace

TEST_CASE("expert profile: equals counts and sums over the routing, token by token", "[finetune]") {
  const ProfileFixture run;
  const ExpertProfile profile = run.profile(EsftScore::kToken, 0.3);
  // The same samples, one forward pass each, counted one assignment at a time.
  ExampleStream stream = run.stream();
  std::vector<std::vector<std::int64_t>> counts_LE(2, std::vector<std::int64_t>(4));
  std::vector<std::vector<double>> sums_LE(2, std::vector<double>(4));
  std::int64_t num_tokens = 0;
  while (const Example* next = stream.peek()) {
    const auto length = static_cast<std::int64_t>(next->tokens.size());
    if (num_tokens + length > kMaxTokens) break;
    PackedBatch batch;
    append_example(batch, *stream.next());
    num_tokens += length;
    const auto routing = run.model.forward(model_input(batch)).routing;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (std::int64_t t = 0; t < length; ++t) {
        for (std::int64_t k = 0; k < 2; ++k) {
          const auto e = routing[layer].expert_ids_TK[t][k].item<std::int64_t>();
          counts_LE[layer][static_cast<std::size_t>(e)] += 1;
          sums_LE[layer][static_cast<std::size_t>(e)] += routing[layer].weights_TK[t][k].item<double>();
        }
      }
    }
  }
  REQUIRE(num_tokens > kMaxTokens / 2);
  REQUIRE(profile.totals.num_tokens == num_tokens);
  REQUIRE(profile.totals.layers == std::vector<std::int64_t>{0, 1});
  REQUIRE(profile.totals.experts_per_token == 2);
  REQUIRE(profile.totals.counts_LE == counts_LE);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    require_close(at::tensor(profile.totals.gate_sums_LE[layer], at::kDouble), at::tensor(sums_LE[layer], at::kDouble),
                  kFloatTolerance, kFloatTolerance);
    const auto token = esft_scores(profile.totals, EsftScore::kToken)[layer],
               gate = esft_scores(profile.totals, EsftScore::kGate)[layer];
    REQUIRE(std::accumulate(token.begin(), token.end(), 0.0) == Approx(1.0).epsilon(1e-12));
    REQUIRE(std::accumulate(gate.begin(), gate.end(), 0.0) == Approx(1.0).epsilon(1e-6));  // norm_topk_prob
  }
  REQUIRE(run.profile(EsftScore::kToken, 0.3).totals.counts_LE == counts_LE);  // nothing random is left
}

TEST_CASE("expert profile: gate mass is that of the scores, whatever they are scaled by", "[finetune]") {
  ProfileFixture run;
  run.model.config.moe->norm_topk_prob = false;
  const auto plain = esft_scores(run.profile(EsftScore::kGate, 0.1).totals, EsftScore::kGate)[0];
  run.model.config.moe->routed_scaling_factor = 16.0;
  const auto scaled = esft_scores(run.profile(EsftScore::kGate, 0.1).totals, EsftScore::kGate)[0];
  // The first layer's routers see the same hidden states in both.
  require_close(at::tensor(scaled, at::kDouble), at::tensor(plain, at::kDouble), kFloatTolerance, kFloatTolerance);
  const double mass = std::accumulate(plain.begin(), plain.end(), 0.0);
  REQUIRE((mass > 0.5 && mass < 0.999));  // the mean of the two largest of four probabilities
}

TEST_CASE("expert profile: table, warnings and both files say the same", "[finetune]") {
  const ProfileFixture run;
  const ExpertProfile profile = run.profile(EsftScore::kToken, 0.5);
  REQUIRE(profile_warnings(profile).empty());
  write_profile(profile, run.folder / "a.json");
  REQUIRE(read_esft_config(run.folder / "a.json") == profile.selection);
  REQUIRE(profile_path("x/a.json") == "x/a.profile.json");
  const Json json = read_json_file(run.folder / "a.profile.json");
  REQUIRE(json == profile_json(profile));
  REQUIRE(json.at("score") == "token");
  REQUIRE_THAT(json.at("token_scores_are").get<std::string>(), Catch::Contains("sums to 1 over each layer"));
  REQUIRE_THAT(json.at("gate_scores_are").get<std::string>(), Catch::Contains("not normalized"));
  // The scores in the file lead to the selection beside it.
  for (const auto& [layer, scores] : json.at("token_scores").items()) {
    std::vector<double> scores_E;
    for (const auto& [expert, score] : scores.items()) scores_E.push_back(score.get<double>());
    REQUIRE(select_experts(scores_E, 0.5) == profile.selection.experts.at(std::stoll(layer)));
    REQUIRE(json.at("selected_share").at(layer).get<double>() >= 0.5 - 1e-9);
  }
  const std::string table = profile_table(profile);
  REQUIRE_THAT(table, Catch::StartsWith("layer  experts  selected   share  which"));
  REQUIRE(std::count(table.begin(), table.end(), '\n') == 4);  // header, two layers, all of them

  ExpertProfile greedy = profile;
  greedy.score = EsftScore::kGate, greedy.top_p = 0.9;
  greedy.totals.gate_sums_LE[1].assign(4, 0.05 * static_cast<double>(greedy.totals.num_tokens));
  greedy.selection = select_experts(greedy.totals, greedy.score, greedy.top_p);
  REQUIRE(profile_warnings(greedy) ==
          std::vector<std::string>{
              "layer 1: all gate scores sum to 0.2000, less than --top-p 0.9; every expert is selected"});
}

TEST_CASE("expert profile: real instructions and real mathematics use different experts", "[finetune]") {
  const char* shared = std::getenv("DAGMOE_SHARED");
  const std::filesystem::path data =
      std::filesystem::path(shared != nullptr ? shared : DAGMOE_SOURCE_DIR "/../shared") / "data";
  if (!std::filesystem::exists(data / "alpaca")) DAGMOE_SKIP("no shared data at " + data.string());
  // A random router of many experts is enough: it depends on the tokens.
  const TemporaryFolder folder;
  ModelConfig config = tiny_folder_config();
  config.moe->num_experts = 32;
  write_tiny_folder(folder / "model", config);
  const auto tokenizer = load_tokenizer(folder / "model");
  const Decoder model = load_decoder(Checkpoint::open(folder / "model"), {});
  const auto totals_of = [&](const SourceConfig& source, std::uint64_t seed) {
    ExampleStream stream({source}, *tokenizer, {.max_bad_records = 50, .seed = seed});
    return profile_experts(model, stream, {.max_tokens = 20000});
  };
  const SourceConfig alpaca{data / "alpaca/random_9k.json", RecordFormat::kAlpaca},
      math{data / "metamath/GSM8K_test.jsonl", RecordFormat::kMetaMath};
  const RoutingTotals instructions = totals_of(alpaca, 1), others = totals_of(alpaca, 2), problems = totals_of(math, 1);
  // Half the sum of differences of shares, over both layers.
  const auto distance = [](const RoutingTotals& a, const RoutingTotals& b) {
    const auto x_LE = esft_scores(a, EsftScore::kToken), y_LE = esft_scores(b, EsftScore::kToken);
    double sum = 0.0;
    for (std::size_t layer = 0; layer < x_LE.size(); ++layer) {
      for (std::size_t e = 0; e < x_LE[layer].size(); ++e) sum += std::abs(x_LE[layer][e] - y_LE[layer][e]) / 2;
    }
    return sum;
  };
  INFO("between tasks " << distance(instructions, problems) << ", within one " << distance(instructions, others));
  REQUIRE(distance(instructions, problems) > 3 * distance(instructions, others));
  const auto selected = [](const RoutingTotals& totals) {
    return select_experts(totals, EsftScore::kToken, 0.5).experts;
  };
  REQUIRE(selected(instructions) != selected(problems));
}

TEST_CASE("expert profile: a dense model and weights that are not finite are refused", "[finetune]") {
  ProfileFixture run;
  ExampleStream stream = run.stream();
  run.model.layers[1].router.weight = at::full_like(run.model.layers[1].router.weight, NAN);
  REQUIRE_THROWS_AS(profile_experts(run.model, stream, {}), NumericsError);
  run.model.config.moe.reset();
  REQUIRE_THROWS_WITH(profile_experts(run.model, stream, {}), Catch::Contains("the model is dense"));
}

TEST_CASE("esft run: training changes exactly the selected experts, in either layout", "[finetune]") {
  const TinyRun run("steps: 3\nesft: {experts: selection.json}\n");
  write_text(run.folder / "selection.json", kSelection);
  write_fused_folder(run.folder / "fused", tiny_folder_config());
  const std::vector<std::string> esft{"trainable=[esft]", "esft.experts=" + (run.folder / "selection.json").string()};
  run_finetune(run.into("per_expert", esft), {});
  const auto changed = changed_tensors(run.folder / "model", run.folder / "per_expert" / "final");
  REQUIRE(
      std::set<std::string>(changed.begin(), changed.end()) ==
      std::set<std::string>{
          "model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.layers.0.block_sparse_moe.experts.1.w2.weight",
          "model.layers.0.block_sparse_moe.experts.1.w3.weight", "model.layers.0.block_sparse_moe.experts.3.w1.weight",
          "model.layers.0.block_sparse_moe.experts.3.w2.weight", "model.layers.0.block_sparse_moe.experts.3.w3.weight",
          "model.layers.1.block_sparse_moe.experts.0.w1.weight", "model.layers.1.block_sparse_moe.experts.0.w2.weight",
          "model.layers.1.block_sparse_moe.experts.0.w3.weight"});
  auto fused = esft;
  fused.push_back("model.path=" + (run.folder / "fused").string());
  run_finetune(run.into("fused_run", fused), {});
  REQUIRE(Checkpoint::open(run.folder / "fused_run" / "final").layout() == ExpertLayout::kFused);
  REQUIRE(changed_parameters(run.folder / "fused", run.folder / "fused_run" / "final") == selected_names());
  // The layout is a matter of files alone.
  REQUIRE(changed_parameters(run.folder / "per_expert" / "final", run.folder / "fused_run" / "final").empty());
  // With the DAG beside them.
  auto both = esft;
  both.front() = "trainable=[esft, {group: dag, lr: 0.001}]";
  run_finetune(run.into("both", both), {});
  for (const auto& name : changed_parameters(run.folder / "model", run.folder / "both" / "final"))
    REQUIRE((selected_names().contains(name) || parameter_group(name) == "dag"));
}

TEST_CASE("esft run: a profile's own file trains what it lists", "[finetune]") {
  const ProfileFixture run("steps: 2\nesft: {experts: selection.json}\n");
  const ExpertProfile profile = run.profile(EsftScore::kToken, 0.3);
  write_profile(profile, run.folder / "a.json");
  const Recipe recipe = run.into("trained", {"trainable=[esft]", "esft.experts=" + run.file("a.json")});
  std::vector<std::string> names;
  std::set<std::string> trainable;
  for (const RunParameter& parameter : prepare_run(recipe).parameters) {
    names.push_back(parameter.name);
    if (parameter.is_trainable) trainable.insert(parameter.name);
  }
  REQUIRE(trainable == esft_parameters(profile.selection, names, "a.json"));
  REQUIRE(trainable.size() < 2 * 4 * 3);
  run_finetune(recipe, {});
  REQUIRE(changed_parameters(run.folder / "model", run.folder / "trained" / "final") == trainable);
}

TEST_CASE("esft run: a dense layer and shared experts, from profile to training", "[finetune]") {
  const TinyRun run("steps: 2\nesft: {experts: selection.json}\n");
  ModelConfig config = tiny_folder_config();
  config.base_model_type = "qwen2_moe";
  config.qkv_bias = true;
  config.moe->mlp_only_layers = {0};
  config.moe->shared_expert_intermediate_size = 8, config.moe->shared_expert_gate = true;
  write_tiny_folder(run.folder / "shared", config);
  const auto tokenizer = load_tokenizer(run.folder / "shared");
  ExampleStream stream({{.path = run.folder / "train.jsonl", .format = RecordFormat::kAlpaca, .chat = {}}}, *tokenizer,
                       {});
  const Decoder model = load_decoder(Checkpoint::open(run.folder / "shared"), {});
  ExpertProfile profile{.model = "shared", .data = {"train.jsonl"}};
  profile.totals = profile_experts(model, stream, {.max_tokens = 500});
  REQUIRE(profile.totals.layers == std::vector<std::int64_t>{1});
  profile.selection = select_experts(profile.totals, EsftScore::kToken, 0.2);
  REQUIRE(profile.selection.experts.size() == 1);
  const auto trained_with = [&](const std::string& name) {
    write_profile(profile, run.folder / (name + ".json"));
    run_finetune(run.into(name, {"trainable=[esft]", "model.path=" + (run.folder / "shared").string(),
                                 "esft.experts=" + (run.folder / (name + ".json")).string()}),
                 {});
    return changed_parameters(run.folder / "shared", run.folder / name / "final");
  };
  const auto experts = trained_with("experts");
  REQUIRE(experts.size() == 3 * profile.selection.experts.at(1).size());
  profile.selection.shared_experts = true;
  auto with_shared = experts;
  for (const char* part : {"expert.gate_proj", "expert.up_proj", "expert.down_proj", "expert_gate"})
    with_shared.insert(str("model.layers.1.mlp.shared_", part, ".weight"));
  REQUIRE(trained_with("with_shared") == with_shared);
}

TEST_CASE("esft run: rule and section need each other, and the file must fit the model", "[finetune]") {
  const TinyRun run;
  REQUIRE_THAT(error_of([&] { run.recipe({"trainable=[esft]"}); }),
               Catch::Contains("esft: required by trainable: esft; expected {experts: FILE}, which dagmoe "
                               "profile-experts writes"));
  REQUIRE_THAT(error_of([&] { run.recipe({"trainable=[full, '!esft']"}); }), Catch::Contains("required by trainable"));
  const std::string file = (run.folder / "selection.json").string();
  const auto recipe = [&](const char* rules) { return run.recipe({rules, "esft.experts=" + file}); };
  REQUIRE_THAT(error_of([&] { prepare_run(recipe("trainable=[esft]")); }),
               Catch::Contains(file + ": no such file; esft.experts names it"));
  write_text(file, R"({"experts": {"0": [4], "1": [0], "2": [0]}})");
  REQUIRE(error_of([&] { prepare_run(recipe("trainable=[esft]")); }) ==
          file + ": experts.0: found expert 4; this layer has experts 0 to 3\n" + file +
              ": experts.2: the model has layers 0 to 1");
  // A section that no rule asks for is not read.
  REQUIRE(prepare_run(recipe("trainable=[dag]")).warnings ==
          std::vector<std::string>{"esft.experts has no effect unless a rule says esft"});
}

TEST_CASE("esft run: resuming with another selection is an error", "[finetune]") {
  const TinyRun run("steps: 4\nesft: {experts: selection.json}\n");
  const std::string file = (run.folder / "selection.json").string();
  write_text(file, kSelection);
  const Recipe recipe = run.recipe({"trainable=[esft]", "esft.experts=" + file, "checkpoint.every_steps=2"});
  run_finetune(recipe, {});
  std::filesystem::remove_all(run.folder / "run" / "final");
  const auto resume = [&] { return error_of([&] { run_finetune(recipe, {.resume = true}); }); };
  for (const char* other : {R"({"experts": {"0": [1], "1": [0]}})", R"({"experts": {"0": [1, 2], "1": [0]}})"}) {
    write_text(file, other);
    REQUIRE_THAT(resume(), Catch::Contains("the checkpoint is of a run that trained other parameters"));
  }
  write_text(file, std::string(kSelection) + "\n");
  REQUIRE_THAT(resume(), Catch::Contains("selection.json: is not the file that this run began with"));
  write_text(file, kSelection);
  REQUIRE(resume().empty());
}
