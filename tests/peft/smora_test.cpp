#include "peft/smora.h"

#include "base/error.h"
#include "tests/peft/mixture_reference.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::int64_t kIn = 6, kOut = 5;

// y of one token, straight from the equations.
Vector reference_token(const Vector& x, const Smora& adapter) {
  Vector scores = times(adapter.gate_RI, x);
  const Vector bias = vector_of(adapter.bias_R);
  for (std::size_t r = 0; r < scores.size(); ++r) scores[r] = 1.0 / (1.0 + std::exp(-scores[r])) + bias[r];
  const auto chosen = largest(scores, adapter.config.num_active);
  double sum = 0.0;
  for (const std::int64_t r : chosen) sum += scores[static_cast<std::size_t>(r)];
  const Vector low = times(adapter.A_RI, x);
  Vector gated(low.size(), 0.0);
  for (const std::int64_t r : chosen) {
    const auto i = static_cast<std::size_t>(r);
    gated[i] = adapter.config.alpha * scores[i] / sum * low[i];
  }
  return times(adapter.B_OR, gated);
}

at::Tensor reference(const at::Tensor& x_TI, const Smora& adapter) {
  at::Tensor result = at::empty({x_TI.size(0), adapter.B_OR.size(0)}, at::kDouble);
  for (std::int64_t t = 0; t < x_TI.size(0); ++t) {
    result[t].copy_(at::tensor(reference_token(vector_of(x_TI[t]), adapter), at::kDouble));
  }
  return result;
}

std::vector<at::Tensor> parameters(const SmoraConfig& config, std::uint64_t seed) {
  return random_parameters(smora_shapes(config, kOut, kIn), seed);
}

const std::vector<SmoraConfig> kConfigs = {
    {.rank = 8, .num_active = 3, .alpha = 2.0},
    {.rank = 8, .num_active = 8, .alpha = 2.0},
    {.rank = 8, .num_active = 1, .alpha = 0.5},
    {.rank = 1, .num_active = 1, .alpha = 1.0},
};

}  // namespace

TEST_CASE("smora: the update is the equations', in double and in float", "[peft]") {
  for (const SmoraConfig& config : kConfigs) {
    for (const std::int64_t T : {1, 9}) {
      INFO("rank " << config.rank << ", active " << config.num_active << ", T " << T);
      const at::Tensor x_TI = random_normal({T, kIn}, 1);
      const Smora adapter = make_smora(config, parameters(config, 2));
      require_close(smora_delta(x_TI, adapter), reference(x_TI, adapter), kDoubleTolerance, kDoubleTolerance);
      const Smora in_float = make_smora(config, cast(parameters(config, 2), at::kFloat));
      const at::Tensor x_float_TI = x_TI.to(at::kFloat);
      require_close(smora_delta(x_float_TI, in_float), reference(x_float_TI, in_float), kFloatTolerance,
                    kFloatTolerance);
    }
  }
}

TEST_CASE("smora: bfloat16 activations are routed in float", "[peft]") {
  const SmoraConfig config = kConfigs[0];
  const at::Tensor x_TI = random_normal({9, kIn}, 3).to(at::kBFloat16);
  const Smora adapter = make_smora(config, cast(cast(parameters(config, 4), at::kBFloat16), at::kFloat));
  SmoraRouting routing, in_float;
  const at::Tensor delta_TO = smora_delta(x_TI, adapter, &routing);
  REQUIRE(delta_TO.scalar_type() == at::kBFloat16);
  const at::Tensor expected_TO = smora_delta(x_TI.to(at::kFloat), adapter, &in_float);
  require_close(delta_TO, expected_TO, kBf16Tolerance, kBf16Tolerance);
  require_equal(routing.gates_TK, in_float.gates_TK);
  require_equal(routing.rank_ids_TK, in_float.rank_ids_TK);
}

TEST_CASE("smora: gradients are central differences; the bias has none", "[peft]") {
  for (const SmoraConfig& config : kConfigs) {
    INFO("rank " << config.rank << ", active " << config.num_active);
    std::vector<at::Tensor> inputs = parameters(config, 5);
    inputs.push_back(random_normal({4, kIn}, 6));
    for (const std::size_t i : {0u, 1u, 2u, 4u}) inputs[i].set_requires_grad(true);
    require_gradients_match(
        [&config](const std::vector<at::Tensor>& in) {
          return smora_delta(in[4], make_smora(config, {in[0], in[1], in[2], in[3]}));
        },
        inputs);
  }
  std::vector<at::Tensor> tensors = parameters(kConfigs[0], 5);
  tensors[3].set_requires_grad(true);
  REQUIRE_FALSE(smora_delta(random_normal({4, kIn}, 6), make_smora(kConfigs[0], tensors)).requires_grad());
}

TEST_CASE("smora: starts as no update, with a gradient for B and after its first step for A and the router", "[peft]") {
  const SmoraConfig config{.rank = 16, .num_active = 4};
  at::Generator generator = at::detail::createCPUGenerator(7);
  const std::vector<at::Tensor> tensors = unset_parameters(smora_shapes(config, kOut, kIn));
  const Smora adapter = make_smora(config, tensors);
  initialize_smora(adapter, generator);
  for (const at::Tensor& tensor : tensors) REQUIRE_FALSE(tensor.isnan().any().item<bool>());
  REQUIRE(adapter.A_RI.abs().max().item<double>() <= 1.0 / std::sqrt(kIn));
  REQUIRE(adapter.A_RI.abs().max().item<double>() > 0.8 / std::sqrt(kIn));
  REQUIRE(adapter.bias_R.count_nonzero().item<std::int64_t>() == 0);

  const at::Tensor x_TI = random_normal({20, kIn}, 8).to(at::kFloat);
  const at::Tensor target_TO = random_normal({20, kOut}, 9).to(at::kFloat);
  for (const std::size_t i : {0u, 1u, 2u}) tensors[i].set_requires_grad(true);
  const auto gradients = [&] {
    const at::Tensor delta_TO = smora_delta(x_TI, adapter);
    return torch::autograd::grad({(delta_TO * target_TO).sum()}, {tensors[0], tensors[1], tensors[2]});
  };
  require_equal(smora_delta(x_TI, adapter), at::zeros({20, kOut}));
  const auto first = gradients();
  REQUIRE(first[0].count_nonzero().item<std::int64_t>() == 0);
  REQUIRE(first[1].abs().max().item<double>() > 1e-3);
  {
    const at::NoGradGuard no_grad;
    tensors[1].sub_(first[1], 1e-2);
  }
  const auto second = gradients();
  for (const at::Tensor& gradient : second) REQUIRE(gradient.abs().max().item<double>() > 1e-5);
}

TEST_CASE("smora: no tokens give no rows, and zero gradients", "[peft]") {
  std::vector<at::Tensor> tensors = parameters(kConfigs[0], 10);
  tensors[1].set_requires_grad(true);
  SmoraRouting routing;
  const at::Tensor delta_TO = smora_delta(at::zeros({0, kIn}, at::kDouble), make_smora(kConfigs[0], tensors), &routing);
  REQUIRE(delta_TO.sizes() == at::IntArrayRef({0, kOut}));
  REQUIRE(smora_counts(routing, kConfigs[0]) == std::vector<std::int64_t>(8, 0));
  require_equal(torch::autograd::grad({delta_TO.sum()}, {tensors[1]})[0], at::zeros({kOut, 8}));
}

TEST_CASE("smora: gates are the biased scores over their sum, and the bias decides the choice", "[peft]") {
  // Without a router every sigmoid is 1/2.
  const SmoraConfig config{.rank = 3, .num_active = 2, .alpha = 1.0};
  const Smora adapter = make_smora(config, {at::ones({3, kIn}), at::ones({kOut, 3}), at::zeros({3, kIn}),
                                            at::tensor(std::vector<float>{0.0F, 0.5F, 0.25F})});
  SmoraRouting routing;
  smora_delta(at::ones({1, kIn}), adapter, &routing);
  REQUIRE(at::equal(routing.rank_ids_TK, at::tensor(std::vector<std::int64_t>{1, 2}).view({1, 2})));
  require_close(routing.gates_TK, at::tensor(std::vector<double>{1.0 / 1.75, 0.75 / 1.75}).view({1, 2}), 1e-7, 0);
}

TEST_CASE("smora: of equal scores the lower rank is chosen", "[peft]") {
  const Smora adapter =
      make_smora(kConfigs[0], {at::ones({8, kIn}), at::ones({kOut, 8}), at::zeros({8, kIn}), at::zeros({8})});
  SmoraRouting routing;
  smora_delta(at::ones({2, kIn}), adapter, &routing);
  REQUIRE(at::equal(routing.rank_ids_TK, at::tensor(std::vector<std::int64_t>{0, 1, 2, 0, 1, 2}).view({2, 3})));
}

TEST_CASE("smora: the order of ranks does not matter", "[peft]") {
  const SmoraConfig config = kConfigs[0];
  const std::vector<at::Tensor> tensors = parameters(config, 11);
  const at::Tensor order = at::tensor(std::vector<std::int64_t>{3, 7, 0, 1, 6, 2, 5, 4});
  const std::vector<at::Tensor> permuted = {tensors[0].index_select(0, order), tensors[1].index_select(1, order),
                                            tensors[2].index_select(0, order), tensors[3].index_select(0, order)};
  const at::Tensor x_TI = random_normal({9, kIn}, 12);
  require_close(smora_delta(x_TI, make_smora(config, permuted)), smora_delta(x_TI, make_smora(config, tensors)),
                kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("smora: the bias moves against the load by one rate", "[peft]") {
  const at::Tensor bias_R = at::tensor(std::vector<double>{1.0, 0.0, -1.0, 0.5});
  const at::Tensor moved_R = updated_smora_bias(bias_R, {5, 3, 0, 4}, 0.25);
  require_equal(moved_R, at::tensor(std::vector<double>{0.75, 0.0, -0.75, 0.25}));
  require_close(updated_smora_bias(at::zeros({2}), {0, 2}), at::tensor(std::vector<double>{1e-5, -1e-5}), 1e-11, 0);
}

TEST_CASE("smora: counts add up to k per token", "[peft]") {
  SmoraRouting routing;
  smora_delta(random_normal({50, kIn}, 13), make_smora(kConfigs[0], parameters(kConfigs[0], 14)), &routing);
  const auto counts = smora_counts(routing, kConfigs[0]);
  REQUIRE(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) == 150);
}

TEST_CASE("smora: every wrong setting is named", "[peft]") {
  check(SmoraConfig{}, "adapters[0]");
  try {
    check(SmoraConfig{.rank = 0, .num_active = 9, .alpha = 0.0}, "adapters[0]");
    FAIL("no error");
  } catch (const ConfigError& error) {
    REQUIRE(error.issues() == std::vector<std::string>{"adapters[0].rank: found 0, expected 1 or more",
                                                       "adapters[0].num_active: found 9, expected 1 to rank (0)",
                                                       "adapters[0].alpha: found 0, expected a number above 0"});
  }
  REQUIRE_THROWS_AS(make_smora(kConfigs[0], parameters(kConfigs[3], 15)), InternalError);
}
