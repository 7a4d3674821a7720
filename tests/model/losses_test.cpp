#include "model/losses.h"

#include <cmath>

#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

Routing routing_of(const at::Tensor& logits_TE, std::int64_t K) {
  return {logits_TE, {}, std::get<1>(at::topk(logits_TE, K, 1))};
}

}  // namespace

TEST_CASE("losses: balanced routing gives K in the Hugging Face scale", "[model]") {
  // Token t prefers experts t and t + 1, so that every expert is chosen equally often.
  at::Tensor logits = at::zeros({4, 4}, at::kDouble);
  for (std::int64_t t = 0; t < 4; ++t) logits[t][t] = 5.0, logits[t][(t + 1) % 4] = 4.0;
  const MoeConfig config{.num_experts = 4, .num_experts_per_tok = 2};
  REQUIRE(load_balancing_loss({routing_of(logits, 2)}, config).item<double>() == Approx(2.0));
}

TEST_CASE("losses: tokens that all choose the same experts give E", "[model]") {
  const at::Tensor logits = at::tensor(std::vector<double>{60.0, 60.0, -60.0, -60.0}).expand({8, 4});
  const MoeConfig config{.num_experts = 4, .num_experts_per_tok = 2};
  REQUIRE(load_balancing_loss({routing_of(logits, 2)}, config).item<double>() == Approx(4.0));
}

TEST_CASE("losses: the balance loss takes logits, not probabilities", "[model]") {
  const at::Tensor logits = at::tensor(std::vector<double>{3.0, 1.0, 0.0, -2.0}).expand({8, 4});
  const MoeConfig config{.num_experts = 4, .num_experts_per_tok = 2};
  const double right = load_balancing_loss({routing_of(logits, 2)}, config).item<double>();
  const double doubled = load_balancing_loss({routing_of(at::softmax(logits, 1), 2)}, config).item<double>();
  REQUIRE(std::abs(right - doubled) > 0.1);
}

TEST_CASE("losses: the z-loss is the mean squared logsumexp", "[model]") {
  const at::Tensor logits = at::zeros({3, 4}, at::kDouble);
  REQUIRE(router_z_loss({routing_of(logits, 2)}).item<double>() == Approx(std::log(4.0) * std::log(4.0)));
}

TEST_CASE("losses: expert use counts dead experts and the largest load", "[model]") {
  const ExpertUse use = expert_use({{4, 0, 2, 2}, {2, 2, 2, 2}});
  REQUIRE(use.max_over_mean == Approx(1.5));
  REQUIRE(use.dead_fraction == Approx(1.0 / 8));
}

TEST_CASE("losses: balance and z-loss gradients agree with central differences", "[model]") {
  at::Generator generator = at::detail::createCPUGenerator(3);
  const at::Tensor logits = at::empty({6, 4}, at::kDouble).normal_(0.0, 1.0, generator).set_requires_grad(true);
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    const MoeConfig config{.num_experts = 4, .num_experts_per_tok = 2, .router_score = score};
    const at::Tensor ids = std::get<1>(at::topk(logits.detach(), 2, 1));
    require_gradients_match(
        [&](const std::vector<at::Tensor>& x) {
          return load_balancing_loss({{x[0], {}, ids}}, config);
        },
        {logits});
  }
  require_gradients_match([&](const std::vector<at::Tensor>& x) { return router_z_loss({routing_of(x[0], 2)}); },
                          {logits});
}

namespace {

// A whole step of random routing: 3 layers, 48 tokens, a different spread in each layer.
struct Step {
  std::vector<at::Tensor> logits_TE;  // one a layer, leaves with gradients
  std::int64_t num_tokens = 0;

  explicit Step(std::int64_t tokens, std::int64_t E = 5) : num_tokens(tokens) {
    at::Generator generator = at::detail::createCPUGenerator(9);
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      at::Tensor logits = at::empty({tokens, E}, at::kDouble).normal_(0.0, 1.5, generator);
      logits.select(1, layer).add_(2.0);
      logits_TE.push_back(logits.set_requires_grad(true));
    }
  }
  std::vector<Routing> routing(std::int64_t first, std::int64_t count, std::int64_t K = 2) const {
    std::vector<Routing> layers;
    for (const at::Tensor& logits : logits_TE) layers.push_back(routing_of(logits.narrow(0, first, count), K));
    return layers;
  }
  std::vector<Routing> whole() const { return routing(0, num_tokens); }
};

// The equations with loops over tokens, layers and experts, in double. f of `counted`, P of `layers`.
double slow_balance(const std::vector<Routing>& layers, const std::vector<Routing>& counted, const MoeConfig& config) {
  const std::int64_t E = config.num_experts;
  std::vector<double> f(static_cast<std::size_t>(E)), P(static_cast<std::size_t>(E));
  double counted_rows = 0.0, rows = 0.0;
  for (const Routing& layer : counted) {
    for (std::int64_t t = 0; t < layer.expert_ids_TK.size(0); ++t, ++counted_rows) {
      for (std::int64_t k = 0; k < layer.expert_ids_TK.size(1); ++k)
        f[static_cast<std::size_t>(layer.expert_ids_TK[t][k].item<std::int64_t>())] += 1;
    }
  }
  for (const Routing& layer : layers) {
    for (std::int64_t t = 0; t < layer.logits_TE.size(0); ++t, ++rows) {
      std::vector<double> score;
      double sum = 0.0;
      for (std::int64_t e = 0; e < E; ++e) {
        const double logit = layer.logits_TE[t][e].item<double>();
        score.push_back(config.router_score == RouterScore::kSoftmax ? std::exp(logit) : 1 / (1 + std::exp(-logit)));
        sum += score.back();
      }
      for (std::size_t e = 0; e < P.size(); ++e) P[e] += score[e] / sum;
    }
  }
  double loss = 0.0;
  for (std::size_t e = 0; e < P.size(); ++e) loss += f[e] / counted_rows * (P[e] / rows);
  return loss * static_cast<double>(E);
}

double slow_z(const std::vector<Routing>& layers) {
  double sum = 0.0, rows = 0.0;
  for (const Routing& layer : layers) {
    for (std::int64_t t = 0; t < layer.logits_TE.size(0); ++t, ++rows) {
      double total = 0.0;
      for (std::int64_t e = 0; e < layer.logits_TE.size(1); ++e)
        total += std::exp(layer.logits_TE[t][e].item<double>());
      sum += std::log(total) * std::log(total);
    }
  }
  return sum / rows;
}

MoeConfig five_experts(RouterScore score = RouterScore::kSoftmax) {
  return {.num_experts = 5, .num_experts_per_tok = 2, .router_score = score};
}

}  // namespace

TEST_CASE("losses: every term equals its equation written as loops", "[model]") {
  const Step step(24);
  const auto all = step.whole(), part = step.routing(3, 9);
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    const MoeConfig config = five_experts(score);
    const ExpertCounts counts = expert_counts(all, 5);
    REQUIRE(load_balancing_loss(all, config).item<double>() ==
            Approx(slow_balance(all, all, config)).epsilon(kDoubleTolerance));
    REQUIRE(load_balancing_loss(part, config).item<double>() ==
            Approx(slow_balance(part, part, config)).epsilon(kDoubleTolerance));
    REQUIRE(load_balancing_loss(part, config, counts).item<double>() ==
            Approx(slow_balance(part, all, config)).epsilon(kDoubleTolerance));
    const auto layers = layer_balance(router_sums(part, config), expert_counts(part, 5));
    REQUIRE(layers.size() == 3);
    for (std::size_t n = 0; n < layers.size(); ++n)
      REQUIRE(layers[n] == Approx(slow_balance({part[n]}, {part[n]}, config)).epsilon(kDoubleTolerance));
  }
  REQUIRE(router_z_loss(part).item<double>() == Approx(slow_z(part)).epsilon(kDoubleTolerance));
}

TEST_CASE("losses: over the counts of the step, micro batches of any sizes give the whole step's losses and gradients",
          "[model]") {
  const Step step(48);
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    const MoeConfig config = five_experts(score);
    const ExpertCounts step_counts = expert_counts(step.whole(), 5);
    const at::Tensor expected = load_balancing_loss(step.whole(), config) * 0.7 + router_z_loss(step.whole()) * 0.3;
    const auto expected_grads = torch::autograd::grad({expected}, step.logits_TE);
    const auto expected_layers = layer_balance(router_sums(step.whole(), config), step_counts);
    const std::vector<std::vector<std::int64_t>> splits = {{48}, {12, 12, 12, 12}, {1, 2, 3, 10, 5, 7, 11, 9}};
    for (const auto& sizes : splits) {
      INFO(sizes.size() << " micro batches");
      ExpertCounts counts;
      double value = 0.0;
      RouterSums sums;
      std::vector<at::Tensor> grads(3);
      std::int64_t first = 0;
      for (const std::int64_t size : sizes) {
        const double share = static_cast<double>(size) / 48;
        const auto part = step.routing(first, size);
        const at::Tensor loss =
            (load_balancing_loss(part, config, step_counts) * 0.7 + router_z_loss(part) * 0.3) * share;
        value += loss.item<double>();
        const auto part_grads = torch::autograd::grad({loss}, step.logits_TE);
        sums += router_sums(part, config);
        for (std::size_t n = 0; n < 3; ++n) {
          grads[n] = grads[n].defined() ? grads[n] + part_grads[n] : part_grads[n];
        }
        counts += expert_counts(part, 5);
        first += size;
      }
      REQUIRE(counts == step_counts);
      const auto layers = layer_balance(sums, counts);
      REQUIRE(balance_of(sums, counts) ==
              Approx(load_balancing_loss(step.whole(), config).item<double>()).epsilon(kDoubleTolerance));
      REQUIRE(value == Approx(expected.item<double>()).epsilon(kDoubleTolerance));
      for (std::size_t n = 0; n < 3; ++n) {
        require_close(grads[n], expected_grads[n], kDoubleTolerance, kDoubleTolerance);
        REQUIRE(layers[n] == Approx(expected_layers[n]).epsilon(kDoubleTolerance));
      }
    }
    // What the step's counts are for: means over micro batches of their own losses are another number.
    const double own = load_balancing_loss(step.routing(0, 5), config).item<double>() * 5 / 48 +
                       load_balancing_loss(step.routing(5, 43), config).item<double>() * 43 / 48;
    REQUIRE(std::abs(own - load_balancing_loss(step.whole(), config).item<double>()) > 1e-4);
  }
}

TEST_CASE("losses: the counts are those of each layer", "[model]") {
  Routing a, b;
  a.expert_ids_TK = at::tensor(std::vector<std::int64_t>{0, 2, 2, 1, 0, 2}).view({3, 2});
  b.expert_ids_TK = at::tensor(std::vector<std::int64_t>{3, 2, 3, 1, 3, 0}).view({3, 2});
  const ExpertCounts counts = expert_counts({a, b}, 4);
  REQUIRE(counts.counts_LE == std::vector<std::vector<std::int64_t>>{{2, 1, 3, 0}, {1, 1, 1, 3}});
  REQUIRE(counts.num_tokens == 3);
  REQUIRE(expert_counts({}, 4) == ExpertCounts{});
}

TEST_CASE("losses: without a trained parameter before a router there is no gradient", "[model]") {
  Decoder model = tiny_model(tiny_config(), at::kFloat);
  const ModelInput input = packed_input(at::arange(8), {8});
  const auto train = [&](const std::string& part) {
    for (const auto& [name, tensor] : model.parameters())
      tensor->set_requires_grad(name.find(part) != std::string::npos);
  };
  train("layers.1.mlp.");
  REQUIRE(has_gradient(model.forward(input).routing));
  train("layers.1.mlp.dag.");
  REQUIRE_FALSE(has_gradient(model.forward(input).routing));
  train("layers.0.mlp.dag.");
  REQUIRE(has_gradient(model.forward(input).routing));
}
