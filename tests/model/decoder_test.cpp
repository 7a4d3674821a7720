#include "model/decoder.h"

#include "kernels/ops.h"
#include "model/families.h"
#include "model/losses.h"
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
void check_family(const std::string& folder, double gradient_tolerance = 1e-4) {
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
    const std::string on_disk = "grad." + disk_name(model.config, name);
    INFO(on_disk);
    require_close(tensor->grad(), golden_tensor(expected, on_disk), 1e-5, gradient_tolerance);
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
  for (const char* name : {"mixtral", "mixtral_sigmoid", "mixtral_shared", "olmoe", "qwen2_moe", "qwen3_moe",
                           "deepseek_v2", "deepseek_v2_groups"}) {
    // The two sum messages and experts in another order, and the gradients below the DAG are sums that cancel.
    check_family(std::string("dagmoe_") + name, 1e-3);
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
