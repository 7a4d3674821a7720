#include "peft/smore.h"

#include "base/error.h"
#include "tests/peft/mixture_reference.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::int64_t kIn = 6, kOut = 5;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The tree of one token, node by node, straight from the equations of the header; what it chose is added to the sums.
class ReferenceTree {
 public:
  ReferenceTree(const Smore& adapter, const at::Tensor& x_I, std::vector<Vector>& counts,
                std::vector<Vector>& probabilities)
      : adapter_(adapter), x_(vector_of(x_I)), counts_(counts), probabilities_(probabilities) {
    query_ = plus(times(adapter.down_weight_QI, x_), vector_of(adapter.down_bias_Q));
  }

  Vector delta() { return times(adapter_.final_weight_OD, children(adapter_.config.num_depths() - 1, {})); }

 private:
  // t_{l+1} of the node that the experts `ancestors`, top first, lead to.
  Vector children(std::int64_t l, const std::vector<std::int64_t>& ancestors) {
    const SmoreDepth& depth = adapter_.depths[index(l)];
    const Vector p = probabilities(l, ancestors);
    const std::int64_t num_active = adapter_.config.num_active[index(l)];
    const auto chosen = largest(p, num_active);
    double chosen_sum = 0.0;
    for (const std::int64_t i : chosen) chosen_sum += p[index(i)];
    Vector sum(index(depth.B_SDR.size(1)), 0.0);
    for (const std::int64_t i : chosen) {
      counts_[index(l)][index(i)] += 1.0;
      const double c = adapter_.config.alpha / static_cast<double>(adapter_.config.ranks[index(l)]);
      Vector inside = times(depth.B_SDR[i], times(depth.A_SRI[i], x_));
      for (double& value : inside) value *= c;
      if (l > 0) {
        std::vector<std::int64_t> below = ancestors;
        below.push_back(i);
        inside = plus(inside, times(depth.W_DC, children(l - 1, below)));
      }
      const double gate = num_active == 1 ? p[index(i)] : p[index(i)] / chosen_sum;
      for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += gate * std::tanh(inside[d]);
    }
    return sum;
  }

  Vector probabilities(std::int64_t l, const std::vector<std::int64_t>& ancestors) {
    const SmoreDepth& depth = adapter_.depths[index(l)];
    Vector input = query_;
    std::int64_t depth_of_ancestor = adapter_.config.num_depths() - 1;
    for (const std::int64_t i : ancestors) {
      const Vector key = vector_of(adapter_.depths[index(depth_of_ancestor--)].keys_SH[i]);
      input.insert(input.end(), key.begin(), key.end());
    }
    Vector hidden = plus(times(depth.hidden_weight_HX, input), vector_of(depth.hidden_bias_H));
    for (double& value : hidden) value = std::max(value, 0.0);
    const Vector query = plus(times(depth.query_weight_HH, hidden), vector_of(depth.query_bias_H));
    Vector p;
    double sum = 0.0;
    for (std::int64_t i = 0; i < depth.keys_SH.size(0); ++i) {
      p.push_back(std::exp(dot(vector_of(depth.keys_SH[i]), query)));
      sum += p.back();
    }
    for (double& value : p) value /= sum;
    probabilities_[index(l)] = plus(probabilities_[index(l)], p);
    return p;
  }

  const Smore& adapter_;
  Vector x_, query_;
  std::vector<Vector>& counts_;
  std::vector<Vector>& probabilities_;
};

struct Reference {
  at::Tensor delta_TO;
  std::vector<Vector> counts, probability_sums;  // [depth][expert]
  double balance_loss = 0.0;
};

Reference reference(const at::Tensor& x_TI, const Smore& adapter) {
  Reference result;
  const SmoreConfig& config = adapter.config;
  for (const std::int64_t S : config.num_experts) {
    result.counts.emplace_back(index(S), 0.0);
    result.probability_sums.emplace_back(index(S), 0.0);
  }
  result.delta_TO = at::empty({x_TI.size(0), adapter.final_weight_OD.size(0)}, at::kDouble);
  for (std::int64_t t = 0; t < x_TI.size(0); ++t) {
    ReferenceTree tree(adapter, x_TI[t], result.counts, result.probability_sums);
    result.delta_TO[t].copy_(at::tensor(tree.delta(), at::kDouble));
  }
  double nodes = static_cast<double>(x_TI.size(0));
  for (std::int64_t l = config.num_depths() - 1; l >= 0; --l) {
    const double scale = static_cast<double>(config.num_experts[index(l)]) / (nodes * nodes);
    result.balance_loss += scale * dot(result.counts[index(l)], result.probability_sums[index(l)]);
    nodes *= static_cast<double>(config.num_active[index(l)]);
  }
  return result;
}

SmoreConfig config_of(std::vector<std::int64_t> experts, std::vector<std::int64_t> active,
                      std::vector<std::int64_t> ranks) {
  return {.num_experts = std::move(experts),
          .num_active = std::move(active),
          .ranks = std::move(ranks),
          .alpha = 3.0,
          .router_dim = 3,
          .key_dim = 4};
}

const std::vector<SmoreConfig> kConfigs = {
    config_of({4, 4}, {2, 2}, {2, 3}), config_of({3, 4, 3}, {2, 3, 2}, {2, 1, 2}), config_of({5}, {2}, {3}),
    config_of({3, 2}, {3, 2}, {2, 2}), config_of({4, 3}, {1, 1}, {2, 2}),          config_of({1, 1}, {1, 1}, {2, 1}),
};

std::string text_of(const SmoreConfig& config) {
  std::string text;
  for (std::int64_t l = 0; l < config.num_depths(); ++l) {
    text += std::to_string(config.num_active[index(l)]) + " of " + std::to_string(config.num_experts[index(l)]) + "; ";
  }
  return text;
}

std::vector<at::Tensor> parameters(const SmoreConfig& config, std::uint64_t seed) {
  return random_parameters(smore_shapes(config, kOut, kIn), seed);
}

void require_counts(const SmoreRouting& routing, const Smore& adapter, const Reference& expected) {
  for (std::int64_t l = 0; l < adapter.config.num_depths(); ++l) {
    const auto counts = smore_counts(routing, adapter.config, l);
    REQUIRE(Vector(counts.begin(), counts.end()) == expected.counts[index(l)]);
  }
}

}  // namespace

TEST_CASE("smore: update, choices and balance loss are the equations', in double and in float", "[peft]") {
  for (const SmoreConfig& config : kConfigs) {
    for (const std::int64_t T : {1, 9}) {
      INFO(text_of(config) << "T " << T);
      SmoreRouting routing;
      const at::Tensor x_TI = random_normal({T, kIn}, 1);
      const Smore adapter = make_smore(config, parameters(config, 2));
      const Reference expected = reference(x_TI, adapter);
      require_close(smore_delta(x_TI, adapter, &routing), expected.delta_TO, kDoubleTolerance, kDoubleTolerance);
      require_counts(routing, adapter, expected);
      require_close(smore_balance_loss(routing, config), at::scalar_tensor(expected.balance_loss, at::kDouble),
                    kDoubleTolerance, kDoubleTolerance);

      const at::Tensor x_float_TI = x_TI.to(at::kFloat);
      const Smore in_float = make_smore(config, cast(parameters(config, 2), at::kFloat));
      const Reference expected_float = reference(x_float_TI, in_float);
      require_close(smore_delta(x_float_TI, in_float, &routing), expected_float.delta_TO, kFloatTolerance,
                    kFloatTolerance);
      require_counts(routing, in_float, expected_float);
    }
  }
}

TEST_CASE("smore: bfloat16 activations are routed in float", "[peft]") {
  const SmoreConfig config = kConfigs[0];
  const at::Tensor x_TI = random_normal({9, kIn}, 3).to(at::kBFloat16);
  const Smore adapter = make_smore(config, cast(cast(parameters(config, 4), at::kBFloat16), at::kFloat));
  SmoreRouting routing, in_float;
  const at::Tensor delta_TO = smore_delta(x_TI, adapter, &routing);
  REQUIRE(delta_TO.scalar_type() == at::kBFloat16);
  require_close(delta_TO, smore_delta(x_TI.to(at::kFloat), adapter, &in_float), kBf16Tolerance, kBf16Tolerance);
  for (std::size_t l = 0; l < 2; ++l) {
    require_equal(routing.depths[l].probabilities_TPS, in_float.depths[l].probabilities_TPS);
    require_equal(routing.depths[l].expert_ids_TPF, in_float.depths[l].expert_ids_TPF);
  }
}

TEST_CASE("smore: gradients of update and balance loss are central differences", "[peft]") {
  for (const SmoreConfig& config : kConfigs) {
    INFO(text_of(config));
    std::vector<at::Tensor> inputs = parameters(config, 5);
    inputs.push_back(random_normal({3, kIn}, 6));
    for (at::Tensor& input : inputs) input.set_requires_grad(true);
    require_gradients_match(
        [&config](const std::vector<at::Tensor>& in) {
          SmoreRouting routing;
          const at::Tensor delta_TO = smore_delta(in.back(), make_smore(config, {in.begin(), in.end() - 1}), &routing);
          return at::cat({delta_TO.flatten(), smore_balance_loss(routing, config).view(1)});
        },
        inputs);
  }
}

TEST_CASE("smore: starts as no update; no gradient is zero after the first step", "[peft]") {
  for (const SmoreConfig& config : {SmoreConfig{}, kConfigs[1], kConfigs[4]}) {
    INFO(text_of(config));
    const auto shapes = smore_shapes(config, kOut, kIn);
    const std::vector<at::Tensor> tensors = unset_parameters(shapes);
    const Smore adapter = make_smore(config, tensors);
    at::Generator generator = at::detail::createCPUGenerator(7);
    initialize_smore(adapter, generator);
    for (const at::Tensor& tensor : tensors) REQUIRE_FALSE(tensor.isnan().any().item<bool>());
    REQUIRE(adapter.depths[0].A_SRI.abs().max().item<double>() <= 1.0 / std::sqrt(kIn));
    REQUIRE(adapter.depths[0].A_SRI.abs().max().item<double>() > 0.8 / std::sqrt(kIn));

    const at::Tensor x_TI = random_normal({40, kIn}, 8).to(at::kFloat);
    const at::Tensor target_TO = random_normal({40, kOut}, 9).to(at::kFloat);
    for (const at::Tensor& tensor : tensors) tensor.set_requires_grad(true);
    const auto gradients = [&] {
      return torch::autograd::grad({(smore_delta(x_TI, adapter) * target_TO).sum()}, tensors);
    };
    require_equal(smore_delta(x_TI, adapter), at::zeros({40, kOut}));
    const auto first = gradients();
    for (std::size_t i = 0; i + 1 < first.size(); ++i) REQUIRE(first[i].count_nonzero().item<std::int64_t>() == 0);
    REQUIRE(first.back().abs().max().item<double>() > 1e-3);
    {
      const at::NoGradGuard no_grad;
      tensors.back().sub_(first.back(), 1e-1);
    }
    const auto second = gradients();
    for (std::size_t i = 0; i < second.size(); ++i) {
      INFO(shapes[i].first);
      REQUIRE(second[i].abs().max().item<double>() > 1e-7);
    }
  }
}

TEST_CASE("smore: a seed means the same initial values in float and in double", "[peft]") {
  const auto shapes = smore_shapes(SmoreConfig{}, kOut, kIn);
  const std::vector<at::Tensor> in_float = unset_parameters(shapes), in_double = cast(in_float, at::kDouble);
  for (const auto& tensors : {in_float, in_double}) {
    at::Generator generator = at::detail::createCPUGenerator(7);
    initialize_smore(make_smore(SmoreConfig{}, tensors), generator);
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) require_equal(in_float[i], in_double[i]);
}

TEST_CASE("smore: no tokens give no rows, zero gradients and no balance loss", "[peft]") {
  const SmoreConfig config = kConfigs[0];
  const std::vector<at::Tensor> tensors = parameters(config, 10);
  for (const at::Tensor& tensor : tensors) tensor.set_requires_grad(true);
  SmoreRouting routing;
  const at::Tensor delta_TO = smore_delta(at::zeros({0, kIn}, at::kDouble), make_smore(config, tensors), &routing);
  REQUIRE(delta_TO.sizes() == at::IntArrayRef({0, kOut}));
  REQUIRE(smore_balance_loss(routing, config).item<double>() == 0.0);
  for (const at::Tensor& gradient : torch::autograd::grad({delta_TO.sum()}, tensors)) {
    REQUIRE(gradient.count_nonzero().item<std::int64_t>() == 0);
  }
}

TEST_CASE("smore: the order of tokens does not matter, nor that of the experts of a depth", "[peft]") {
  const SmoreConfig config = kConfigs[1];
  const std::vector<at::Tensor> tensors = parameters(config, 11);
  const Smore adapter = make_smore(config, tensors);
  const at::Tensor x_TI = random_normal({9, kIn}, 12), delta_TO = smore_delta(x_TI, adapter);
  const at::Tensor reversed = at::arange(8, -1, -1);
  require_close(smore_delta(x_TI.index_select(0, reversed), adapter), delta_TO.index_select(0, reversed),
                kDoubleTolerance, kDoubleTolerance);
  for (std::size_t l = 0; l < 3; ++l) {
    Smore permuted = adapter;
    SmoreDepth& depth = permuted.depths[l];
    const at::Tensor rolled = at::arange(config.num_experts[l]).roll(1);
    for (at::Tensor* tensor : {&depth.A_SRI, &depth.B_SDR, &depth.keys_SH}) *tensor = tensor->index_select(0, rolled);
    require_close(smore_delta(x_TI, permuted), delta_TO, kDoubleTolerance, kDoubleTolerance);
  }
}

TEST_CASE("smore: gates sum to 1, or are the probability where one expert is active", "[peft]") {
  SmoreRouting routing;
  const SmoreConfig config = config_of({4, 3}, {2, 1}, {2, 2});
  smore_delta(random_normal({9, kIn}, 13), make_smore(config, parameters(config, 14)), &routing);
  require_close(routing.depths[0].gates_TPF.sum(-1), at::ones({9, 1}), kDoubleTolerance, 0);
  const SmoreDepthRouting& top = routing.depths[1];
  require_equal(top.gates_TPF.squeeze(-1), std::get<0>(top.probabilities_TPS.max(-1)));
}

TEST_CASE("smore: children depend on the expert above them", "[peft]") {
  // Keys of the ancestors reach the router below: without them both branches of a token would choose the same.
  SmoreRouting routing;
  const SmoreConfig config = kConfigs[0];
  const Smore adapter = make_smore(config, parameters(config, 15));
  smore_delta(random_normal({9, kIn}, 16), adapter, &routing);
  const at::Tensor& leaves_TPS = routing.depths[0].probabilities_TPS;
  REQUIRE((leaves_TPS.select(1, 0) - leaves_TPS.select(1, 1)).abs().min().item<double>() > 0.0);
  adapter.depths[1].keys_SH.zero_();
  smore_delta(random_normal({9, kIn}, 16), adapter, &routing);
  const at::Tensor& alike_TPS = routing.depths[0].probabilities_TPS;
  require_equal(alike_TPS.select(1, 0), alike_TPS.select(1, 1));
}

TEST_CASE("smore: balance loss is the number active when balanced, the number of experts when collapsed", "[peft]") {
  const SmoreConfig config = config_of({4}, {1}, {1});
  const at::Tensor confident = at::eye(4, at::kDouble) * 0.6 + 0.1;
  const auto loss_of = [&config](const at::Tensor& probabilities_TPS, const at::Tensor& ids_TPF) {
    return smore_balance_loss({{{probabilities_TPS, {}, ids_TPF}}}, config).item<double>();
  };
  REQUIRE(loss_of(confident.unsqueeze(1), at::arange(4).view({4, 1, 1})) == Approx(1.0));
  const at::Tensor collapsed = at::zeros({4, 1, 4}, at::kDouble);
  collapsed.select(2, 2).fill_(1.0);
  REQUIRE(loss_of(collapsed, at::full({4, 1, 1}, 2, at::kLong)) == Approx(4.0));
  // An undecided router is balanced whatever it takes: sum over depths of num_active.
  SmoreRouting routing;
  const SmoreConfig deep = kConfigs[1];
  const Smore adapter = make_smore(deep, parameters(deep, 17));
  for (const SmoreDepth& depth : adapter.depths) depth.keys_SH.zero_();
  smore_delta(random_normal({9, kIn}, 18), adapter, &routing);
  REQUIRE(smore_balance_loss(routing, deep).item<double>() == Approx(2.0 + 3.0 + 2.0));
}

TEST_CASE("smore: names and shapes of the paper's example", "[peft]") {
  std::string text;
  for (const auto& [name, shape] : smore_shapes(SmoreConfig{}, 48, 64)) {
    text += name;
    for (const std::int64_t size : shape) text += " " + std::to_string(size);
    text += "\n";
  }
  REQUIRE(text ==
          "smore_router.down.weight 32 64\nsmore_router.down.bias 32\n"
          "smore_A.0.weight 4 8 64\nsmore_B.0.weight 4 32 8\nsmore_router.0.keys 4 32\n"
          "smore_router.0.hidden.weight 32 64\nsmore_router.0.hidden.bias 32\n"
          "smore_router.0.query.weight 32 32\nsmore_router.0.query.bias 32\n"
          "smore_A.1.weight 4 8 64\nsmore_B.1.weight 4 64 8\nsmore_W.1.weight 64 32\nsmore_router.1.keys 4 32\n"
          "smore_router.1.hidden.weight 32 32\nsmore_router.1.hidden.bias 32\n"
          "smore_router.1.query.weight 32 32\nsmore_router.1.query.bias 32\n"
          "smore_final.weight 48 64\n");
}

TEST_CASE("smore: every wrong setting is named", "[peft]") {
  check(SmoreConfig{}, "adapters[0]");
  SmoreConfig wrong = config_of({4, 4}, {2, 5}, {8});
  wrong.alpha = -1.0;
  wrong.key_dim = 0;
  try {
    check(wrong, "adapters[0]");
    FAIL("no error");
  } catch (const ConfigError& error) {
    REQUIRE(error.issues() == std::vector<std::string>{
                                  "adapters[0].ranks: found 1 values, expected one per depth, as num_experts has (2)",
                                  "adapters[0].num_active: found 5 of 4 experts at depth 1, expected at most all",
                                  "adapters[0].alpha: found -1, expected a number above 0",
                                  "adapters[0].key_dim: found 0, expected 1 or more"});
  }
  REQUIRE_THROWS_AS(check(config_of({}, {}, {}), "adapters[0]"), ConfigError);
  REQUIRE_THROWS_AS(make_smore(kConfigs[0], parameters(kConfigs[3], 15)), InternalError);
}
