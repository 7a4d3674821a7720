// S'MoRE and SMoRA in a run: what trains, what the balancing adds, what a run leaves behind and reads again.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/adapter.h"
#include "finetune/run.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "finetune/trainer.h"
#include "kernels/ops.h"
#include "peft/trainable.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

using Words = std::vector<std::string>;

Words with(Words settings, const Words& more) {
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

// Attention of both layers, small trees and few ranks; the adapter alone trains.
Words settings_of(const std::string& kind) {
  const Words common{"trainable=[]", "lora.kind=" + kind, "lora.targets=[attention]"};
  return kind == "smore" ? with(common, {"lora.smore.num_experts=[3, 4]", "lora.smore.num_active=[2, 2]",
                                         "lora.smore.ranks=[2, 3]", "lora.smore.router_dim=5", "lora.smore.key_dim=6"})
                         : with(common, {"lora.rank=6", "lora.smora.num_active=2"});
}
const Words kKinds{"smore", "smora"};

// A new adapter's update is zero, and most of its gradients with it.
void wake(Decoder& model) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.adapter_parameters()) {
    if (name.ends_with("smore_final.weight") || name.ends_with("smora_B.weight"))
      tensor->copy_(at::linspace(-0.3, 0.4, tensor->numel()).mul(7).sin().mul(0.3).view(tensor->sizes()));
  }
}

/// A trainer over the fixture's records with everything it refers to.
struct Session {
  Recipe recipe;
  RunSetup setup;
  RunData data;
  Decoder model;
  Trainer trainer;
  Session(const TinyRun& run, const Words& overrides, std::int64_t micro_batch_tokens = 0,
          const std::optional<LayersToRecompute>& recompute = {})
      : recipe(run.recipe(overrides)),
        setup(prepare_run(recipe)),
        data(open_data(recipe)),
        model(woken_model()),
        trainer(model, data.train, config(micro_batch_tokens, recompute)) {}

 private:
  Decoder woken_model() const {
    Decoder decoder = load_run_model(recipe, setup);
    wake(decoder);
    return decoder;
  }
  TrainConfig config(std::int64_t micro_batch_tokens, const std::optional<LayersToRecompute>& recompute) const {
    TrainConfig config = train_config(recipe, setup);
    if (recompute) config.recompute = *recompute;
    config.num_steps = 10;
    if (micro_batch_tokens > 0) config.batch.micro_batch_tokens = micro_batch_tokens;
    return config;
  }
};

// The gradients of the first step, by name; `metrics`, unless null, are its metrics.
std::map<std::string, at::Tensor> gradients(const TinyRun& run, const Words& overrides, std::int64_t micro_batch_tokens,
                                            StepMetrics* metrics = nullptr,
                                            const std::optional<LayersToRecompute>& recompute = {}) {
  Session session(run,
                  with(overrides, {"optimizer.name=sgd", "optimizer.momentum=0", "max_grad_norm=0",
                                   "batch.sequences=20", "data.shuffle=false"}),
                  micro_batch_tokens, recompute);
  const StepMetrics step = session.trainer.step();
  if (metrics != nullptr) *metrics = step;
  std::map<std::string, at::Tensor> result;
  for (const auto& [name, tensor] : session.model.all_parameters()) {
    if (tensor->grad().defined()) result[name] = tensor->grad().clone();
  }
  return result;
}

void require_close_gradients(const std::map<std::string, at::Tensor>& found,
                             const std::map<std::string, at::Tensor>& expected) {
  REQUIRE(!expected.empty());
  REQUIRE(found.size() == expected.size());
  for (const auto& [name, gradient] : expected) {
    INFO(name);
    const double length = gradient.norm().item<double>();
    REQUIRE((found.at(name) - gradient).norm().item<double>() <= kFloatTolerance * std::max(length, 1e-3));
  }
}

at::Tensor logits_of(const Decoder& model) {
  const at::NoGradGuard no_grad;
  const ModelInput input = packed_input(at::arange(3, 43), {25, 15});
  return model.logits(model.forward(input).hidden_TD);
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return str(static_cast<int>(error.exit_code()), " ", error.what());
  }
  return "no error";
}

// Copies an adapter folder, its tensors changed by `edit`.
std::filesystem::path changed_copy(const std::filesystem::path& folder, const std::filesystem::path& copy,
                                   const std::function<void(std::map<std::string, at::Tensor>&)>& edit) {
  std::filesystem::create_directories(copy);
  std::filesystem::copy_file(folder / "adapter_config.json", copy / "adapter_config.json");
  const SafetensorsFile file = SafetensorsFile::open(folder / "adapter_model.safetensors");
  std::map<std::string, at::Tensor> tensors;
  for (const TensorInfo& info : file.tensors()) tensors[info.name] = golden_tensor(file, info.name);
  edit(tensors);
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : tensors) {
    sources.push_back({name, DType::kF32, tensor.sizes().vec(), [tensor] {
                         return std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
                       }});
  }
  write_safetensors(copy / "adapter_model.safetensors", std::move(sources));
  return copy;
}

}  // namespace

TEST_CASE("mixture adapters: before the first step the model is the base, bit for bit", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    const Recipe recipe = run.recipe(settings_of(kind));
    const RunSetup setup = prepare_run(recipe);
    const Decoder base = load_decoder(setup.source, load_options(recipe, setup));
    Decoder adapted = load_run_model(recipe, setup);
    REQUIRE(adapted.adapter_parameters().size() == setup.adapter.parameters().size());
    require_equal(logits_of(adapted), logits_of(base));
    wake(adapted);
    REQUIRE((logits_of(adapted) - logits_of(base)).abs().max().item<double>() > 1e-3);
  }
}

TEST_CASE("mixture adapters: names, shapes and groups are those that the setup promised", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    Session session(run, settings_of(kind));
    std::map<std::string, std::vector<std::int64_t>> expected;
    for (const auto& [name, shape] : session.setup.adapter.parameters()) expected[name] = shape;
    for (const auto& [name, tensor] : session.model.adapter_parameters()) {
      INFO(name);
      REQUIRE(expected.at(name) == tensor->sizes().vec());
      REQUIRE(parameter_group(name) == "lora");
      REQUIRE(tensor->requires_grad());
    }
    for (const auto& [name, tensor] : session.model.adapter_buffers()) REQUIRE(!tensor->requires_grad());
    const std::size_t num_linears = 8;  // q, k, v and o of two layers
    REQUIRE(session.model.adapter_buffers().size() == (kind == "smora" ? num_linears : 0));
    REQUIRE(session.setup.adapter.buffers().size() == session.model.adapter_buffers().size());
  }
  REQUIRE(parameter_group("model.layers.0.mlp.gate_proj.smore_router.0.keys") == "lora");
}

TEST_CASE("mixture adapters: steps change the adapter alone, and the loss falls", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    INFO(kind);
    Session session(run, settings_of(kind));
    std::map<std::string, at::Tensor> before;
    for (const auto& [name, tensor] : session.model.all_parameters()) before[name] = tensor->detach().clone();
    for (int i = 0; i < 3; ++i) session.trainer.step();
    for (const auto& [name, tensor] : session.model.all_parameters()) {
      INFO(name);
      REQUIRE(at::equal(*tensor, before.at(name)) == (parameter_group(name) != "lora"));
    }
    const RunResult result = run_finetune(run.into("run_" + kind, with(settings_of(kind), {"steps=25"})), {});
    REQUIRE(result.valid_loss_after < result.valid_loss_before - 0.05);
  }
}

TEST_CASE("mixture adapters: a part of one can be frozen by a rule", "[finetune]") {
  const TinyRun run;
  Session session(run, with(settings_of("smore"), {"trainable=[lora, '!*.smore_router.*']"}));
  session.trainer.step();
  for (const auto& [name, tensor] : session.model.adapter_parameters()) {
    INFO(name);
    REQUIRE(tensor->grad().defined() == (name.find(".smore_router.") == std::string::npos));
  }
}

TEST_CASE("mixture adapters: one micro batch or many give the same gradients without a balance loss", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    const Words settings = with(settings_of(kind), kind == "smore" ? Words{"lora.smore.balance_coef=0"} : Words{});
    StepMetrics whole, parts;
    const auto expected = gradients(run, settings, 100000, &whole);
    for (const std::int64_t micro_batch_tokens : {200, 1}) {
      require_close_gradients(gradients(run, settings, micro_batch_tokens, &parts), expected);
      REQUIRE(parts.rank_counts == whole.rank_counts);
    }
  }
}

TEST_CASE("mixture adapters: recomputed layers have the same gradients, balance loss and counts", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    INFO(kind);
    const Words settings = with(settings_of(kind), kind == "smore" ? Words{"lora.smore.balance_coef=0.5"} : Words{});
    StepMetrics kept, again;
    const auto expected = gradients(run, settings, 200, &kept);
    for (const LayersToRecompute& choice : {LayersToRecompute(true), LayersToRecompute(std::vector<bool>{true, false}),
                                            LayersToRecompute(std::vector<bool>{false, true})}) {
      require_close_gradients(gradients(run, settings, 200, &again, choice), expected);
      REQUIRE(again.rank_counts == kept.rank_counts);
      REQUIRE(again.adapter_balance_loss == kept.adapter_balance_loss);
    }
    REQUIRE(kept.adapter_balance_loss.has_value() == (kind == "smore"));
  }
}

TEST_CASE("S'MoRE: the balance loss of micro batches weighs by their share of the tokens", "[finetune]") {
  const TinyRun run;
  // One adapted layer, whose input nothing that trains reaches: the loss can be formed apart from the model.
  const Words settings =
      with(settings_of("smore"), {"lora.targets=[model.layers.0.self_attn.q_proj]", "lora.smore.balance_coef=0"});
  const Words balanced = with(settings, {"lora.smore.balance_coef=0.3"});
  StepMetrics metrics;
  const auto without = gradients(run, settings, 200), with_loss = gradients(run, balanced, 200, &metrics);

  Session session(run, with(balanced, {"batch.sequences=20", "data.shuffle=false"}), 200);
  StepBatchConfig config = batch_config(session.recipe);
  config.micro_batch_tokens = 200;
  const auto batch = next_step_batch(session.data.train, config);
  REQUIRE(batch->micro_batches.size() > 2);
  const DecoderLayer& layer = session.model.layers[0];
  const auto& adapter = std::get<Smore>(layer.attention.q_proj.mixtures.at(0).tensors);
  at::Tensor expected = at::zeros({});
  for (const PackedBatch& micro : batch->micro_batches) {
    const at::Tensor x_TD = rms_norm(at::embedding(session.model.embed_tokens_VD, model_input(micro).input_ids_T),
                                     layer.input_norm_D, session.model.config.rms_norm_eps);
    SmoreRouting routing;
    smore_delta(x_TD, adapter, &routing);
    const double share = static_cast<double>(micro.num_tokens()) / static_cast<double>(batch->num_tokens);
    expected = expected + share * smore_balance_loss(routing, adapter.config);
  }
  REQUIRE(*metrics.adapter_balance_loss == Approx(expected.item<double>()).epsilon(kFloatTolerance));
  expected.backward();
  int compared = 0;
  for (const auto& [name, tensor] : session.model.adapter_parameters()) {
    const at::Tensor found = with_loss.at(name) - without.at(name);
    if (!tensor->grad().defined()) continue;
    INFO(name);
    require_close(found, 0.3 * tensor->grad(), kFloatTolerance, kFloatTolerance);
    ++compared;
  }
  REQUIRE(compared > 5);
}

TEST_CASE("S'MoRE: the balance loss reaches everything before a layer as a term of the objective would", "[finetune]") {
  const TinyRun run;
  const Recipe recipe = run.recipe(settings_of("smore"));
  const RunSetup setup = prepare_run(recipe);
  Decoder model = load_run_model(recipe, setup);
  wake(model);
  model.compute_dtype = at::kDouble;
  for (const auto& [name, tensor] : model.all_parameters())
    *tensor = tensor->detach().to(at::kDouble).set_requires_grad(tensor->requires_grad());
  const ModelInput input = packed_input(at::arange(3, 43), {25, 15});
  constexpr double kWeight = 0.7;
  const auto objective = [&](bool backward) {
    AdapterUse use;
    const ModelOutput output =
        model.forward(input, {.recompute = backward, .adapter_balance_weight = kWeight, .adapter_use = &use});
    const at::Tensor loss = output.hidden_TD.square().mean();
    if (backward) loss.backward();
    return loss.item<double>() + kWeight * use.balance_sum;
  };
  objective(/*backward=*/true);
  // W_final of the first layer's values lies before the balance losses of the second.
  for (const char* name :
       {"model.layers.0.self_attn.v_proj.smore_final.weight", "model.layers.0.self_attn.q_proj.smore_router.1.keys",
        "model.layers.1.self_attn.o_proj.smore_router.down.weight"}) {
    for (auto& [own_name, tensor] : model.adapter_parameters()) {
      if (own_name != name) continue;
      const at::NoGradGuard no_grad;
      for (const std::int64_t i : {0, 3, 7}) {
        INFO(name << " element " << i);
        at::Tensor element = tensor->flatten()[i];
        constexpr double kStep = 1e-6;
        element += kStep;
        const double above = objective(/*backward=*/false);
        element -= 2 * kStep;
        const double below = objective(/*backward=*/false);
        element += kStep;
        const double expected = (above - below) / (2 * kStep), found = tensor->grad().flatten()[i].item<double>();
        REQUIRE(std::abs(found - expected) < 1e-7 + 1e-5 * std::abs(expected));  // of central differences
        REQUIRE(found != 0);
      }
    }
  }
}

TEST_CASE("SMoRA: after a step the bias moves against the counts of the step, and by nothing else", "[finetune]") {
  const TinyRun run;
  const Words settings = with(settings_of("smora"), {"lora.smora.bias_update_rate=0.25", "recompute=true"});
  Session session(run, settings);
  const StepMetrics metrics = session.trainer.step();
  REQUIRE(session.trainer.num_steps_done() == 1);
  int moved = 0;
  for (const auto& [module, linear] : session.model.linears()) {
    for (const MixtureAdapter& adapter : linear->mixtures) {
      const auto& smora = std::get<Smora>(adapter.tensors);
      const auto& counts_R = metrics.rank_counts.at(adapter.id);
      std::int64_t total = 0;
      for (const std::int64_t count : counts_R) total += count;
      REQUIRE(total == metrics.tokens * 2);  // every token once, though recomputed layers choose again
      require_equal(smora.bias_R, updated_smora_bias(at::zeros({6}), counts_R, 0.25));
      moved += smora.bias_R.abs().sum().item<double>() > 0 ? 1 : 0;
    }
  }
  REQUIRE(moved == 8);
  const auto biases = [&session] {
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : session.model.adapter_buffers()) all.push_back(tensor->clone());
    return at::stack(all);
  };
  const at::Tensor before = biases();
  validation_loss(session.model, *session.data.valid, 300);
  require_equal(biases(), before);
  Session still(run, with(settings_of("smora"), {"lora.smora.bias_update_rate=0"}));
  still.trainer.step();
  for (const auto& [name, tensor] : still.model.adapter_buffers()) REQUIRE(tensor->abs().sum().item<double>() == 0);
}

TEST_CASE("mixture adapters: stopping and resuming gives the same run, bit for bit, biases included", "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    INFO(kind);
    const Words settings =
        with(settings_of(kind), kind == "smora" ? Words{"lora.smora.bias_update_rate=0.2"} : Words{});
    const RunResult whole = run_finetune(run.into("whole_" + kind, settings), {});
    const Recipe parts = run.into("parts_" + kind, settings);
    int steps = 0;
    const RunResult first = run_finetune(parts, {.should_stop = [&steps] { return ++steps == 3; }});
    REQUIRE(first.interrupted);
    REQUIRE(is_adapter_folder(first.output));
    const RunResult second = run_finetune(parts, {.resume = true});
    REQUIRE(metrics_of(run.folder / ("whole_" + kind)) == metrics_of(run.folder / ("parts_" + kind)));
    const auto file = [](const RunResult& result) { return read_text(result.output / "adapter_model.safetensors"); };
    REQUIRE(file(whole) == file(second));
    REQUIRE(file(whole) != file(first));
    if (kind != "smora") continue;
    const SafetensorsFile tensors = SafetensorsFile::open(second.output / "adapter_model.safetensors");
    const at::Tensor bias = golden_tensor(tensors, "base_model.model.model.layers.0.self_attn.q_proj.smora_gate.bias");
    REQUIRE(bias.abs().max().item<double>() > 0);
  }
}

TEST_CASE("mixture adapters: a folder reads back to the same model, patterns of rank and alpha included",
          "[finetune]") {
  const TinyRun run;
  for (const auto& kind : kKinds) {
    INFO(kind);
    const std::string pattern = kind == "smore" ? "lora.patterns=[{target: k_proj, alpha: 3}]"
                                                : "lora.patterns=[{target: k_proj, rank: 4, alpha: 3}]";
    Session session(run, with(settings_of(kind), {pattern, "trainable=[dag]"}));
    for (int i = 0; i < 2; ++i) session.trainer.step();
    const auto folder = run.folder / ("adapter_" + kind);
    std::filesystem::create_directories(folder);
    save_adapter(folder, session.model, session.setup.adapter, session.setup.source);
    const Json config = Json::parse(read_text(folder / "adapter_config.json"));
    REQUIRE(config["peft_type"] == (kind == "smore" ? "SMORE" : "SMORA"));
    REQUIRE(config["dagmoe"]["base"]["config_sha256"].is_string());
    REQUIRE(config["target_modules"] == Json({"k_proj", "o_proj", "q_proj", "v_proj"}));

    const Checkpoint base = Checkpoint::open(run.folder / "model");
    Decoder model = load_decoder(base, {});
    const Adapter adapter = read_adapter(folder, model.config);
    check_base(adapter, base);
    attach_adapter(model, adapter);
    require_equal(logits_of(model), logits_of(session.model));
    for (const auto& [name, tensor] : model.all_parameters()) REQUIRE(!tensor->requires_grad());
    // Token by token, as generation runs.
    KvCache cache = model.make_cache(40);
    const at::Tensor ids = at::arange(3, 28);
    const at::Tensor first = model.forward_cached(ids.narrow(0, 0, 20), cache),
                     rest = model.forward_cached(ids.narrow(0, 20, 5), cache);
    require_close(model.logits(at::cat({first, rest})), logits_of(model).narrow(0, 0, 25), 1e-4, 1e-4);
    REQUIRE_THAT(message_of([&model] { fold_adapters(model); }),
                 Catch::StartsWith("3 ") && Catch::Contains("cannot be merged"));
  }
}

TEST_CASE("mixture adapters: a folder that does not fit is refused with every problem", "[finetune]") {
  const TinyRun run;
  const ModelConfig config = Checkpoint::open(run.folder / "model").config();
  const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.";
  for (const auto& kind : kKinds) {
    Session session(run, settings_of(kind));
    const auto folder = run.folder / ("whole_" + kind);
    std::filesystem::create_directories(folder);
    save_adapter(folder, session.model, session.setup.adapter, session.setup.source);
    const std::string tensor = kind == "smore" ? "smore_A.1.weight" : "smora_A.weight";
    const auto broken = changed_copy(folder, run.folder / ("broken_" + kind), [&](auto& tensors) {
      tensors[q + tensor] = at::zeros({2, 2});
      tensors.erase(q + (kind == "smore" ? "smore_router.0.keys" : "smora_gate.bias"));
      tensors[q + (kind == "smore" ? "smore_A.2.weight" : "smora_C.weight")] = at::zeros({1});
      tensors[q + "lora_A.weight"] = at::zeros({1});
      tensors["base_model.model.model.layers.0.mlp.gate." + tensor] = at::zeros({1});
      tensors["base_model.model.model.layers.0.self_attn.p_proj." + tensor] = at::zeros({1});
    });
    const std::string message = message_of([&] { read_adapter(broken, config); });
    REQUIRE_THAT(message, Catch::StartsWith("3 "));
    for (const char* part : {"found shape [2, 2], expected [", "is missing", "no such part in this adapter",
                             "lora_A.weight' is not expected", "is not possible for 'router'",
                             "is no linear layer of this model; did you mean"})
      REQUIRE_THAT(message, Catch::Contains(part));

    Json json = Json::parse(read_text(folder / "adapter_config.json"));
    json["num_active"] = kind == "smore" ? Json({2, 9}) : Json(9);
    write_text(broken / "adapter_config.json", json.dump());
    REQUIRE_THAT(message_of([&] { read_adapter(broken, config); }),
                 Catch::StartsWith("3 ") && Catch::Contains("num_active: found 9"));
  }
}

TEST_CASE("mixture adapters: what does not go with a kind is refused with its key", "[finetune]") {
  const TinyRun run;
  struct Refused {
    std::string kind;
    Words settings;
    std::string message;
  };
  for (const auto& [kind, settings, message] : std::vector<Refused>{
           {"smore", {"lora.dropout=0.1"}, "lora.dropout: means nothing with kind smore"},
           {"smora", {"lora.init=pissa"}, "lora.init: means nothing with kind smora"},
           {"smora", {"lora.rslora=true"}, "lora.rslora: means nothing with kind smora"},
           {"smore", {"lora.rank=4"}, "lora.rank: means nothing with kind smore; give lora.smore.ranks"},
           {"smore", {"lora.lr_ratio=4"}, "lora.lr_ratio: means nothing with kind smore"},
           {"smore", {"lora.patterns=[{target: q_proj, rank: 4}]"}, "lora.patterns.0.rank: means nothing"},
           {"smore", {"lora.smora.num_active=2"}, "lora.smora: is of kind smora"},
           {"smora", {"lora.smore.key_dim=2"}, "lora.smore: is of kind smore"},
           {"smore", {"lora.smore.num_active=[2, 5]"}, "lora.smore: num_active: found 5 of 4 experts at depth 1"},
           {"smore", {"lora.smore.ranks=[2]"}, "lora.smore: ranks: found 1 values"},
           {"smore", {"lora.smore.ranks=[2, x]"}, "lora.smore.ranks.1: found 'x', expected an integer"},
           {"smora", {"lora.smora.num_active=7"}, "lora.smora: num_active: found 7, expected 1 to rank (6)"},
           {"smora", {"lora.alpha=0"}, "alpha: found 0, expected a number above 0"},
       }) {
    INFO(message);
    REQUIRE_THAT(message_of([&] { run.recipe(with(settings_of(kind), settings)); }),
                 Catch::StartsWith("2 ") && Catch::Contains(message));
  }
  for (const auto& [kind, settings, message] : std::vector<Refused>{
           {"smore", {"lora.targets=[experts]"}, "kind smore is not possible for 'experts'"},
           {"smora", {"lora.targets=[router]"}, "kind smora is not possible for 'router'"},
           {"smora", {"lora.patterns=[{target: q_proj, rank: 1}]"}, "num_active: found 2, expected 1 to rank (1)"},
       }) {
    INFO(message);
    REQUIRE_THAT(message_of([&] { prepare_run(run.recipe(with(settings_of(kind), settings))); }),
                 Catch::StartsWith("2 ") && Catch::Contains(message));
  }
  const Recipe recipe = run.recipe(settings_of("smore"));
  write_text(run.folder / "again.yaml", to_yaml(recipe));
  REQUIRE(to_yaml(load_recipe(run.folder / "again.yaml")) == to_yaml(recipe));
}
