#include "model/decoder.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "kernels/ops.h"
#include "model/families.h"
#include "model/losses.h"
#include "model/neftune.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

at::Tensor some_ids(std::int64_t count) { return (at::arange(count) * 37 + 11) % 64; }

at::Tensor next_token_loss(const Decoder& model, const ModelInput& input) {
  const at::Tensor labels = at::full_like(input.input_ids_T, -100);
  const auto T = labels.size(0);
  labels.narrow(0, 0, T - 1).copy_(input.input_ids_T.narrow(0, 1, T - 1));
  return masked_cross_entropy(model.forward(input).hidden_TD, model.output_weight(), labels,
                              1.0 / static_cast<double>(T - 1));
}

// transformers' logits, loss, every gradient by name and greedy continuation of a tiny model.
// Gradients that are sums of parts that cancel are as exact as the parts: to `of_largest` of a tensor's largest
// element.
void check_family(const std::string& folder, double gradient_tolerance = 1e-4, double of_largest = 0) {
  INFO(folder);
  const Checkpoint checkpoint = Checkpoint::open(golden(folder));
  const SafetensorsFile expected = SafetensorsFile::open(golden(folder + "/expected.safetensors"));
  Decoder model =
      load_decoder(checkpoint, {.compute_dtype = at::kFloat, .is_trainable = [](const std::string&) { return true; }});

  const at::Tensor ids_a = golden_tensor(expected, "ids_a"), ids_b = golden_tensor(expected, "ids_b");
  const ModelInput packed = packed_input(at::cat({ids_a, ids_b}), {ids_a.size(0), ids_b.size(0)});
  const at::Tensor logits = model.logits(model.forward(packed).hidden_TD);
  require_close(logits.narrow(0, 0, ids_a.size(0)), golden_tensor(expected, "logits_a"), 1e-4, 1e-5);
  require_close(logits.narrow(0, ids_a.size(0), ids_b.size(0)), golden_tensor(expected, "logits_b"), 1e-4, 1e-5);

  const at::Tensor loss = next_token_loss(model, packed_input(ids_a, {ids_a.size(0)}));
  require_close(loss, golden_tensor(expected, "loss"), 1e-5, 1e-5);
  loss.backward();
  for (const auto& [name, tensor] : model.parameters()) {
    if (name.ends_with(".e_score_correction_bias")) {  // no parameter there either
      REQUIRE_FALSE(tensor->requires_grad());
      continue;
    }
    const std::string on_disk = "grad." + disk_name(model.config, name);
    INFO(on_disk);
    const at::Tensor gradient = golden_tensor(expected, on_disk);
    const double absolute = std::max(1e-5, of_largest * gradient.abs().max().item<double>());
    require_close(tensor->grad(), gradient, absolute, gradient_tolerance);
  }
  if (expected.find("aux_loss") != nullptr) {
    const ModelOutput output = model.forward(packed_input(ids_a, {ids_a.size(0)}));
    require_close(load_balancing_loss(output.routing, *model.config.moe), golden_tensor(expected, "aux_loss"), 1e-5,
                  1e-5);
    for (std::size_t n = 0; n < output.routing.size(); ++n) {
      REQUIRE(at::equal(output.routing[n].expert_ids_TK,
                        golden_tensor(expected, "experts_a." + std::to_string(n)).to(at::kLong)));
    }
  }

  KvCache cache = model.make_cache(32);
  at::Tensor next = golden_tensor(expected, "prompt").to(at::kLong);
  const at::Tensor greedy = golden_tensor(expected, "greedy").to(at::kLong);
  for (std::int64_t i = 0; i < greedy.size(0); ++i) {
    const at::Tensor hidden = model.forward_cached(next, cache);
    next = model.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).argmax(1);
    REQUIRE(next.item<std::int64_t>() == greedy[i].item<std::int64_t>());
  }
}

}  // namespace

TEST_CASE("decoder: a tiny Llama has transformers' logits, loss, gradients and greedy continuation", "[model]") {
  check_family("tiny_llama");
}
TEST_CASE("decoder: so has a tiny Llama with a tied head", "[model]") { check_family("tiny_llama_tied"); }
TEST_CASE("decoder: so has a tiny Mixtral", "[model]") { check_family("tiny_mixtral"); }

TEST_CASE("decoder: a DAG-MoE of every base family has the logits and gradients of the remote code", "[model]") {
  for (const char* name : {"mixtral", "mixtral_sigmoid", "mixtral_shared", "mixtral_bias", "olmoe", "qwen2_moe",
                           "qwen3_moe", "deepseek_v2", "deepseek_v2_groups"}) {
    // The two sum messages and experts in another order, and the gradients below the DAG are sums that cancel. Each is
    // within 4e-6 of the largest element of what double gives.
    check_family(std::string("dagmoe_") + name, 1e-3, 8e-6);
  }
}

TEST_CASE("decoder: packed sequences give what each gives alone", "[model]") {
  const Decoder model = tiny_model(tiny_config());
  const at::Tensor ids = some_ids(13);
  const at::Tensor together = model.forward(packed_input(ids, {5, 1, 7})).hidden_TD;
  std::int64_t begin = 0;
  for (const std::int64_t length : {5, 1, 7}) {
    const at::Tensor alone = model.forward(packed_input(ids.narrow(0, begin, length), {length})).hidden_TD;
    require_close(together.narrow(0, begin, length), alone, 1e-10, 1e-10);
    begin += length;
  }
}

TEST_CASE("decoder: the cached pass equals the whole pass, whatever the chunks", "[model]") {
  const Decoder model = tiny_model(tiny_config());
  const at::Tensor ids = some_ids(12);
  const at::Tensor whole = model.forward(packed_input(ids, {12})).hidden_TD;
  for (const std::vector<std::int64_t>& chunks : {std::vector<std::int64_t>{4, 1, 1, 6}, {12}, {1, 11}}) {
    KvCache cache = model.make_cache(12);
    std::int64_t begin = 0;
    for (const std::int64_t length : chunks) {
      require_close(model.forward_cached(ids.narrow(0, begin, length), cache), whole.narrow(0, begin, length), 1e-10,
                    1e-10);
      begin += length;
    }
  }
}

TEST_CASE("decoder: gradients of every parameter agree with central differences", "[model]") {
  ModelConfig config = tiny_config();
  config.tie_word_embeddings = false;
  config.vocab_size = 11;
  Decoder model = tiny_model(config);
  const ModelInput input = packed_input(some_ids(6) % 11, {4, 2});
  std::vector<at::Tensor> weights;
  for (const auto& [name, tensor] : model.parameters()) weights.push_back(tensor->set_requires_grad(true));
  const auto gradients = torch::autograd::grad({next_token_loss(model, input)}, weights, {}, std::nullopt, false, true);
  // A few entries of each tensor, spread over it: every element of every tensor would take minutes.
  constexpr double kStep = 1e-6;
  const at::NoGradGuard no_grad;
  const auto parameters = model.parameters();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor flat = weights[i].detach().view(-1);
    const at::Tensor gradient = gradients[i].defined() ? gradients[i].reshape(-1) : at::zeros_like(flat);
    const std::int64_t stride = std::max<std::int64_t>(1, flat.size(0) / 5);
    for (std::int64_t j = 0; j < flat.size(0); j += stride) {
      const double value = flat[j].item<double>();
      flat[j] = value + kStep;
      const double above = next_token_loss(model, input).item<double>();
      flat[j] = value - kStep;
      const double below = next_token_loss(model, input).item<double>();
      flat[j] = value;
      INFO(parameters[i].name << " element " << j);
      REQUIRE(gradient[j].item<double>() == Approx((above - below) / (2 * kStep)).margin(1e-6).epsilon(1e-5));
    }
  }
}

TEST_CASE("decoder: a new aggregator leaves the model's output bit-identical", "[model]") {
  Decoder plain = tiny_model(tiny_config(/*with_dag=*/false), at::kFloat);
  Decoder with_dag(tiny_config());
  initialize_dag(with_dag, 3);
  with_dag.compute_dtype = at::kFloat;
  auto from = plain.parameters();
  for (const auto& [name, tensor] : with_dag.parameters()) {
    for (const auto& [plain_name, plain_tensor] : from) {
      if (plain_name == name) *tensor = *plain_tensor;
    }
  }
  const ModelInput input = packed_input(some_ids(10), {6, 4});
  REQUIRE(at::equal(plain.forward(input).hidden_TD, with_dag.forward(input).hidden_TD));
}

TEST_CASE("decoder: frozen parameters below the lowest trained one take no part in the backward pass", "[model]") {
  Decoder model = tiny_model(tiny_config(), at::kFloat);
  for (const auto& [name, tensor] : model.parameters())
    tensor->set_requires_grad(name.find("layers.1.mlp.dag.") != std::string::npos);
  next_token_loss(model, packed_input(some_ids(8), {8})).backward();
  for (const auto& [name, tensor] : model.parameters()) {
    INFO(name);
    REQUIRE(tensor->grad().defined() == tensor->requires_grad());
  }
}

TEST_CASE("decoder: below the lowest trained layer there is no graph and nothing is kept", "[model]") {
  ModelConfig config = tiny_config();
  config.num_hidden_layers = 4;
  Decoder model = tiny_model(config, at::kFloat);
  using Storage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  for (const bool recompute : {false, true}) {
    for (const auto& [name, tensor] : model.parameters())
      tensor->set_requires_grad(name.find("layers.2.mlp.dag.") != std::string::npos);
    std::map<std::string, bool> has_graph;
    std::vector<Storage> below;  // streams that layer 2 does not read
    const ModelOutput output =
        model.forward(packed_input(some_ids(8), {8}), {.on_module =
                                                           [&](const std::string& module, const at::Tensor& tensor) {
                                                             has_graph[module] = tensor.requires_grad();
                                                             if (module == "model.embed_tokens" ||
                                                                 module.starts_with("model.layers.0.") ||
                                                                 module == "model.layers.1.self_attn")
                                                               below.push_back(tensor.storage().getWeakStorageImpl());
                                                           },
                                                       .recompute = recompute});
    REQUIRE(output.hidden_TD.requires_grad());
    for (const char* module : {"model.embed_tokens", "model.layers.0.mlp", "model.layers.1.self_attn",
                               "model.layers.1.mlp", "model.layers.2.self_attn"}) {
      INFO(module);
      REQUIRE_FALSE(has_graph.at(module));
    }
    if (!recompute) REQUIRE(has_graph.at("model.layers.2.mlp"));
    for (std::size_t n = 0; n < 4; ++n) REQUIRE(output.routing[n].logits_TE.requires_grad() == (n == 3));
    REQUIRE(below.size() == 4);
    for (const Storage& storage : below) REQUIRE(storage.expired());
  }
}

TEST_CASE("decoder: the router biases follow the loads of their layers", "[model]") {
  ModelConfig config = tiny_config();
  config.num_hidden_layers = 3, config.moe->router_bias = true, config.moe->mlp_only_layers = {1};
  Decoder model = tiny_model(config, at::kFloat);
  for (const auto& [name, tensor] : model.parameters()) {
    if (name.ends_with("_bias")) tensor->zero_();
  }
  update_router_bias(model, {.counts_LE = {{9, 1, 1, 1}, {3, 3, 4, 2}}, .num_tokens = 6}, 0.5);
  require_equal(model.layers[0].router_bias_E, at::tensor({-0.5F, 0.5F, 0.5F, 0.5F}));
  require_equal(model.layers[2].router_bias_E, at::tensor({0.0F, 0.0F, -0.5F, 0.5F}));
  REQUIRE_THROWS_AS(update_router_bias(model, {.counts_LE = {{1, 1, 1, 1}}, .num_tokens = 2}, 0.5), InternalError);
  // What the bias is for: the expert that all tokens chose loses them.
  const ModelInput input = packed_input(some_ids(40), {40});
  const auto largest_load = [&] { return expert_use(expert_counts(model.forward(input).routing, 4).counts_LE); };
  const double before = largest_load().max_over_mean;
  for (int step = 0; step < 200; ++step)
    update_router_bias(model, expert_counts(model.forward(input).routing, 4), 0.005);
  REQUIRE(largest_load().max_over_mean < before);
  REQUIRE(largest_load().max_over_mean < 1.3);
}

TEST_CASE("decoder: NEFTune's noise is added to the embeddings when it is asked for", "[model]") {
  const Decoder model = tiny_model(tiny_config(), at::kFloat);
  const ModelInput input = packed_input(some_ids(12), {9, 3});
  const auto embedded = [&](ForwardOptions options) {
    at::Tensor result;
    options.on_module = [&](const std::string& module, const at::Tensor& tensor) {
      if (module == "model.embed_tokens") result = tensor;
    };
    static_cast<void>(model.forward(input, options));
    return result;
  };
  const at::Tensor plain = embedded({});
  require_equal(plain, at::embedding(model.embed_tokens_VD, input.input_ids_T));
  const at::Tensor noisy = embedded({.neftune_alpha = 5.0, .noise_seed = 3, .first_sequence = 8});
  require_equal(noisy, plain + neftune_noise(input.segment_offsets, 16, 5.0, 3, 8));
}

TEST_CASE("decoder: bfloat16 compute stays near float", "[model]") {
  Decoder exact = tiny_model(tiny_config(), at::kFloat), rounded = tiny_model(tiny_config(), at::kFloat);
  rounded.compute_dtype = at::kBFloat16;
  const ModelInput input = packed_input(some_ids(10), {10});
  const at::Tensor a = next_token_loss(exact, input), b = next_token_loss(rounded, input);
  REQUIRE(b.item<double>() == Approx(a.item<double>()).epsilon(0.02));
}

TEST_CASE("decoder: the config's list of parameters has the decoder's names in its order", "[model]") {
  for (const bool with_dag : {true, false}) {
    Decoder model = tiny_model(tiny_config(with_dag));
    const auto parameters = model.parameters();
    const auto shapes = parameter_shapes(model.config);
    REQUIRE(parameters.size() == shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i) REQUIRE(parameters[i].name == shapes[i].first);
  }
}
