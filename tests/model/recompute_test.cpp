// The backward pass with layers run again against the one that kept everything.
#include "model/recompute.h"

#include "checkpoint/checkpoint.h"
#include "kernels/ops.h"
#include "model/losses.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

using Policy = std::function<bool(const std::string&)>;

bool everything(const std::string&) { return true; }

Decoder load(const std::string& folder, at::ScalarType dtype, const Policy& trains, bool with_dag) {
  LoadOptions options{.compute_dtype = dtype, .is_trainable = trains};
  if (with_dag) options.add_dag = DagConfig{.num_iterations = 2, .node_size = 4};
  Decoder model = load_decoder(Checkpoint::open(golden(folder)), options);
  // A new DAG's W_up is zero, and then nothing reaches its other weights.
  const at::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (const auto& [name, tensor] : model.parameters()) {
    if (with_dag && name.ends_with("up_proj.weight") && name.find(".dag.") != std::string::npos)
      *tensor = at::empty(tensor->sizes(), tensor->options())
                    .normal_(0.0, 0.2, generator)
                    .set_requires_grad(tensor->requires_grad());
  }
  return model;
}

struct Result {
  at::Tensor loss, hidden_TD;
  std::vector<at::Tensor> gradients;
  ExpertCounts counts;
};

Result run(Decoder& model, const ForwardOptions& options, double aux_coef) {
  for (const auto& [name, tensor] : model.parameters()) tensor->mutable_grad() = at::Tensor();
  const at::Tensor ids = (at::arange(20) * 7 + 3) % model.config.vocab_size;
  const at::Tensor labels = ids.roll(-1).masked_fill(at::arange(20) % 5 == 4, -100);
  const ModelOutput output = model.forward(packed_input(ids, {11, 1, 8}), options);
  Result result;
  result.loss = masked_cross_entropy(output.hidden_TD, model.output_weight(), labels, 1.0 / 16);
  if (!output.routing.empty() && aux_coef > 0 && has_gradient(output.routing)) {
    result.loss = result.loss + load_balancing_loss(output.routing, *model.config.moe) * aux_coef +
                  router_z_loss(output.routing) * aux_coef;
  }
  result.loss.backward();
  result.hidden_TD = output.hidden_TD.detach();
  if (model.config.moe) result.counts = expert_counts(output.routing, model.config.moe->num_experts);
  for (const auto& [name, tensor] : model.parameters()) result.gradients.push_back(tensor->grad());
  return result;
}

// All layers, and both mixtures of kept ones with ones that run again, one after the other.
std::vector<LayersToRecompute> choices(const Decoder& model) {
  std::vector<bool> even, odd;
  for (std::size_t n = 0; n < model.layers.size(); ++n) even.push_back(n % 2 == 0), odd.push_back(n % 2 == 1);
  return {true, LayersToRecompute(even), LayersToRecompute(odd)};
}

// Losses and gradients of `model` with and without recomputation; the same bits.
void require_same(Decoder& model, double aux_coef) {
  const Result kept = run(model, {}, aux_coef);
  for (const LayersToRecompute& choice : choices(model)) {
    const Result again = run(model, {.recompute = choice}, aux_coef);
    require_equal(again.loss, kept.loss);
    require_equal(again.hidden_TD, kept.hidden_TD);
    REQUIRE(again.counts == kept.counts);
    const auto parameters = model.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      INFO(parameters[i].name);
      REQUIRE(again.gradients[i].defined() == kept.gradients[i].defined());
      if (kept.gradients[i].defined()) require_equal(again.gradients[i], kept.gradients[i]);
    }
  }
}

}  // namespace

TEST_CASE("recompute: every family has the same gradients to the bit, in float and bfloat16", "[model]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const std::string name : {"llama_bias", "mistral", "qwen2", "qwen3", "mixtral", "olmoe", "qwen2_moe_step",
                                   "qwen3_moe", "deepseek_v2", "deepseek_v2_group"}) {
      INFO(name << " in " << at::toString(dtype));
      Decoder model = load("families/" + name, dtype, everything, /*with_dag=*/false);
      require_same(model, 0.0);
      require_same(model, 0.01);
    }
  }
}

TEST_CASE("recompute: so have models with a DAG, a shared expert or a router bias", "[model]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const std::string name : {"mixtral", "olmoe", "qwen2_moe", "deepseek_v2_group"}) {
      INFO(name << " in " << at::toString(dtype));
      Decoder model = load("families/" + name, dtype, everything, /*with_dag=*/true);
      require_same(model, 0.01);
    }
    for (const std::string name : {"dagmoe_mixtral_shared", "dagmoe_mixtral_bias", "dagmoe_qwen3_moe"}) {
      INFO(name << " in " << at::toString(dtype));
      Decoder model = load(name, dtype, everything, /*with_dag=*/false);
      require_same(model, 0.01);
    }
  }
}

TEST_CASE("recompute: so has each part of a model trained alone", "[model]") {
  for (const char* part : {".mlp.dag.", ".mlp.gate.", ".mlp.experts.", "self_attn", "layernorm", "embed_tokens",
                           "model.norm", "layers.1.mlp.dag.1.", "layers.0.mlp.experts.1."}) {
    INFO(part);
    Decoder model = load(
        "dagmoe_mixtral", at::kFloat, [part](const std::string& name) { return name.find(part) != std::string::npos; },
        /*with_dag=*/false);
    require_same(model, 0.01);
  }
}

TEST_CASE("recompute: routing has gradients exactly where it has them without", "[model]") {
  for (const char* part : {"layers.0.mlp.dag.", "layers.1.mlp.dag.", "layers.1.mlp.experts.", "layers.1.mlp.gate.",
                           "layers.1.self_attn.", "layers.1.post_attention_layernorm.", "embed_tokens"}) {
    INFO(part);
    Decoder model = load(
        "dagmoe_mixtral", at::kFloat, [part](const std::string& name) { return name.find(part) != std::string::npos; },
        /*with_dag=*/false);
    const ModelInput input = packed_input(at::arange(9), {9});
    const ModelOutput kept = model.forward(input), again = model.forward(input, {.recompute = true});
    for (std::size_t n = 0; n < kept.routing.size(); ++n) {
      REQUIRE(again.routing[n].logits_TE.requires_grad() == kept.routing[n].logits_TE.requires_grad());
      REQUIRE(again.routing[n].weights_TK.requires_grad() == kept.routing[n].weights_TK.requires_grad());
    }
    REQUIRE(again.hidden_TD.requires_grad());
  }
}

TEST_CASE("recompute: the experts that ran forward run again, whatever the router would choose then", "[model]") {
  Decoder model = load("dagmoe_mixtral_bias", at::kFloat, everything, /*with_dag=*/false);
  const Result kept = run(model, {}, 0.0);
  for (const auto& [name, tensor] : model.parameters()) tensor->mutable_grad() = at::Tensor();
  const at::Tensor ids = (at::arange(20) * 7 + 3) % model.config.vocab_size;
  const at::Tensor labels = ids.roll(-1).masked_fill(at::arange(20) % 5 == 4, -100);
  const ModelOutput output = model.forward(packed_input(ids, {11, 1, 8}), {.recompute = true});
  const at::Tensor loss = masked_cross_entropy(output.hidden_TD, model.output_weight(), labels, 1.0 / 16);
  // A bias that would send every token elsewhere.
  for (DecoderLayer& layer : model.layers) layer.router_bias_E = at::tensor({9.0F, 8.0F, 0.0F, 0.0F, 0.0F});
  loss.backward();
  const auto parameters = model.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    INFO(parameters[i].name);
    if (kept.gradients[i].defined()) require_equal(parameters[i].tensor->grad(), kept.gradients[i]);
  }
}

TEST_CASE("recompute: whoever looks at a forward pass is called once for each module", "[model]") {
  Decoder model = load("dagmoe_mixtral", at::kFloat, everything, /*with_dag=*/false);
  std::vector<std::string> kept, again;
  std::vector<std::int64_t> combined;
  const auto options = [&](std::vector<std::string>& modules, bool recompute) {
    return ForwardOptions{
        .on_module = [&](const std::string& name, const at::Tensor&) { modules.push_back(name); },
        .on_combine = [&](std::int64_t layer, const CombineInput&, const Routing&) { combined.push_back(layer); },
        .recompute = recompute};
  };
  run(model, options(kept, false), 0.01);
  run(model, options(again, true), 0.01);
  REQUIRE(kept == again);
  REQUIRE(combined == std::vector<std::int64_t>{0, 1, 0, 1});
}

TEST_CASE("recompute: without gradients it is the plain forward pass", "[model]") {
  Decoder model = load("dagmoe_mixtral", at::kFloat, everything, /*with_dag=*/false);
  const ModelInput input = packed_input(at::arange(9), {9});
  const at::NoGradGuard no_grad;
  const ModelOutput output = model.forward(input, {.recompute = true});
  REQUIRE_FALSE(output.hidden_TD.requires_grad());
  require_equal(output.hidden_TD, model.forward(input).hidden_TD);
}

TEST_CASE("recompute: of the marked layers alone the inner tensors are gone", "[model]") {
  Decoder model = load("dagmoe_mixtral", at::kFloat, everything, /*with_dag=*/false);
  REQUIRE(model.layers.size() == 2);
  using Storage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  for (const std::size_t marked : {0, 1}) {
    std::vector<Storage> inner;
    const ModelOutput output =
        model.forward(packed_input(at::arange(9), {9}),
                      {.on_module =
                           [&](const std::string& name, const at::Tensor& tensor) {
                             if (name.ends_with("self_attn")) inner.push_back(tensor.storage().getWeakStorageImpl());
                           },
                       .recompute = LayersToRecompute(std::vector<bool>{marked == 0, marked == 1})});
    REQUIRE(inner[marked].expired());
    REQUIRE_FALSE(inner[1 - marked].expired());
  }
}

TEST_CASE("recompute: only each layer's input is kept", "[model]") {
  Decoder model = load("dagmoe_mixtral", at::kFloat, everything, /*with_dag=*/false);
  using Storage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  for (const bool recompute : {false, true}) {
    std::vector<Storage> expert_outputs, inner, inputs;
    const ModelOutput output = model.forward(
        packed_input(at::arange(9), {9}),
        {.on_module =
             [&](const std::string& name, const at::Tensor& tensor) {
               (name.ends_with("self_attn") ? inner : inputs).push_back(tensor.storage().getWeakStorageImpl());
             },
         .on_combine =
             [&](std::int64_t, const CombineInput& input, const Routing&) {
               expert_outputs.push_back(input.expert_out_TKD.storage().getWeakStorageImpl());
             },
         .recompute = recompute});
    const auto is_kept = [](const Storage& storage) { return !storage.expired(); };
    REQUIRE(std::ranges::all_of(inputs, is_kept));
    REQUIRE(std::ranges::any_of(inner, is_kept) == !recompute);
    REQUIRE(std::ranges::any_of(expert_outputs, is_kept) == !recompute);
  }
}
