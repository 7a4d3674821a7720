#include "model/router.h"

#include <algorithm>
#include <numeric>

#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

MoeConfig moe_config(RouterScore score, bool renormalise) {
  return {.num_experts = 6,
          .num_experts_per_tok = 3,
          .moe_intermediate_size = 1,
          .router_score = score,
          .norm_topk_prob = renormalise};
}

at::Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::empty(shape, at::kDouble).normal_(0.0, 1.0, generator);
}

}  // namespace

TEST_CASE("router: of equal scores the lower expert index is chosen", "[model]") {
  const at::Tensor router_ED = at::zeros({6, 4}, at::kFloat);
  const Routing routing = route(at::ones({2, 4}, at::kFloat), router_ED, moe_config(RouterScore::kSoftmax, true));
  REQUIRE(at::equal(routing.expert_ids_TK, at::tensor(std::vector<std::int64_t>{0, 1, 2, 0, 1, 2}).view({2, 3})));
}

TEST_CASE("router: softmax, top-K and renormalising equal a softmax over the chosen logits", "[model]") {
  const Routing routing = route(random({9, 5}, 1), random({6, 5}, 2), moe_config(RouterScore::kSoftmax, true));
  require_close(routing.weights_TK, at::softmax(routing.logits_TE.gather(1, routing.expert_ids_TK), 1), 1e-12, 0);
}

TEST_CASE("router: without renormalising the weights are the softmax over all experts", "[model]") {
  const Routing routing = route(random({9, 5}, 1), random({6, 5}, 2), moe_config(RouterScore::kSoftmax, false));
  require_close(routing.weights_TK, at::softmax(routing.logits_TE, 1).gather(1, routing.expert_ids_TK), 1e-12, 0);
  REQUIRE(routing.weights_TK.sum(1).max().item<double>() < 1.0);
}

TEST_CASE("router: the paper's form is sigmoid scores without renormalising", "[model]") {
  const Routing routing = route(random({9, 5}, 1), random({6, 5}, 2), moe_config(RouterScore::kSigmoid, false));
  require_close(routing.weights_TK, at::sigmoid(routing.logits_TE).gather(1, routing.expert_ids_TK), 1e-12, 0);
}

TEST_CASE("router: the K chosen experts are the K largest logits, largest first", "[model]") {
  const Routing routing = route(random({50, 5}, 3), random({6, 5}, 4), moe_config(RouterScore::kSoftmax, true));
  const auto expected = std::get<1>(at::topk(routing.logits_TE, 3, 1));
  REQUIRE(at::equal(routing.expert_ids_TK, expected));
}

TEST_CASE("router: logits are float when activations are bfloat16", "[model]") {
  const Routing routing = route(random({4, 5}, 1).to(at::kBFloat16), random({6, 5}, 2).to(at::kFloat),
                                moe_config(RouterScore::kSoftmax, true));
  REQUIRE(routing.logits_TE.scalar_type() == at::kFloat);
  REQUIRE(routing.weights_TK.scalar_type() == at::kFloat);
}

TEST_CASE("router: gradients agree with central differences", "[model]") {
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    for (const bool renormalise : {true, false}) {
      require_gradients_match(
          [&](const std::vector<at::Tensor>& x) {
            return route(x[0], x[1], moe_config(score, renormalise)).weights_TK;
          },
          {random({5, 4}, 7).set_requires_grad(true), random({6, 4}, 8).set_requires_grad(true)});
    }
  }
}

namespace {

// The choice by its definition, with loops: the K largest of score + bias; of equal sums the larger logit, then the
// lower index.
std::vector<std::int64_t> slow_choice(const at::Tensor& logits_E, const at::Tensor& scores_E, const at::Tensor& bias_E,
                                      std::int64_t K) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(logits_E.size(0)));
  std::iota(ids.begin(), ids.end(), 0);
  const auto at = [](const at::Tensor& x, std::int64_t e) { return x[e].item<double>(); };
  std::stable_sort(ids.begin(), ids.end(), [&](std::int64_t a, std::int64_t b) {
    const double sum_a = at(scores_E, a) + at(bias_E, a), sum_b = at(scores_E, b) + at(bias_E, b);
    return sum_a > sum_b || (sum_a == sum_b && at(logits_E, a) > at(logits_E, b));
  });
  ids.resize(static_cast<std::size_t>(K));
  return ids;
}

}  // namespace

TEST_CASE("router: with a bias the K largest score + bias are chosen, with the weights of the scores", "[model]") {
  const at::Tensor bias_E = random({6}, 5) * 0.5;
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    for (const bool renormalise : {true, false}) {
      const MoeConfig config = moe_config(score, renormalise);
      const at::Tensor x_TD = random({40, 5}, 3), router_ED = random({6, 5}, 4);
      const Routing routing = route(x_TD, router_ED, config, {.bias_E = bias_E});
      const at::Tensor scores_TE =
          score == RouterScore::kSoftmax ? at::softmax(routing.logits_TE, 1) : at::sigmoid(routing.logits_TE);
      for (std::int64_t t = 0; t < 40; ++t) {
        const at::Tensor expected = at::tensor(slow_choice(routing.logits_TE[t], scores_TE[t], bias_E, 3));
        REQUIRE(at::equal(routing.expert_ids_TK[t], expected));
      }
      at::Tensor weights_TK = scores_TE.gather(1, routing.expert_ids_TK);
      if (renormalise) weights_TK = weights_TK / weights_TK.sum(1, true);
      require_close(routing.weights_TK, weights_TK, 1e-12, 0);
      REQUIRE_FALSE(at::equal(routing.expert_ids_TK, route(x_TD, router_ED, config).expert_ids_TK));
    }
  }
}

TEST_CASE("router: a bias of zeros, or one that is equal for all, chooses as none does", "[model]") {
  // Sigmoid merges large logits: the scores 1 of 20 and of 30 are equal in float, and the logits decide.
  const at::Tensor x_TD = at::ones({1, 1}, at::kFloat);
  const at::Tensor router_ED = at::tensor({20.0F, 30.0F, 25.0F, -1.0F, 40.0F, 30.0F}).view({6, 1});
  const MoeConfig config = moe_config(RouterScore::kSigmoid, true);
  const at::Tensor expected = at::tensor(std::vector<std::int64_t>{4, 1, 5}).view({1, 3});
  REQUIRE(at::equal(route(x_TD, router_ED, config).expert_ids_TK, expected));
  for (const double value : {0.0, 0.25})
    REQUIRE(at::equal(route(x_TD, router_ED, config, {.bias_E = at::full({6}, value)}).expert_ids_TK, expected));
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    const at::Tensor x = random({200, 5}, 6).to(at::kFloat) * 8, w = random({6, 5}, 7).to(at::kFloat);
    const Routing plain = route(x, w, moe_config(score, true)),
                  biased = route(x, w, moe_config(score, true), {.bias_E = at::zeros({6})});
    REQUIRE(at::equal(plain.expert_ids_TK, biased.expert_ids_TK));
    REQUIRE(at::equal(plain.weights_TK, biased.weights_TK));
  }
}

TEST_CASE("router: a bias moves the choice of groups too, and experts of other groups come last", "[model]") {
  MoeConfig config = moe_config(RouterScore::kSoftmax, false);
  config.num_experts_per_tok = 2, config.n_group = 3, config.topk_group = 1;
  const at::Tensor x_TD = at::ones({1, 1}, at::kDouble);
  const at::Tensor router_ED = at::tensor({3.0, 0.0, 2.0, 1.0, -1.0, -2.0}, at::kDouble).view({6, 1});
  REQUIRE(at::equal(route(x_TD, router_ED, config).expert_ids_TK,
                    at::tensor(std::vector<std::int64_t>{0, 1}).view({1, 2})));
  const at::Tensor bias_E = at::tensor({-3.0, -3.0, -3.0, -3.0, -2.0, -3.0}, at::kDouble);
  const Routing routing = route(x_TD, router_ED, config, {.bias_E = bias_E});
  REQUIRE(at::equal(routing.expert_ids_TK, at::tensor(std::vector<std::int64_t>{4, 5}).view({1, 2})));
  require_close(routing.weights_TK, at::softmax(routing.logits_TE, 1).narrow(1, 4, 2), 1e-12, 0);
}

TEST_CASE("router: given experts are taken and nothing is chosen", "[model]") {
  const at::Tensor ids = at::tensor(std::vector<std::int64_t>{5, 0, 3}).view({1, 3});
  const Routing routing =
      route(random({1, 5}, 1), random({6, 5}, 2), moe_config(RouterScore::kSoftmax, false), {.expert_ids_TK = ids});
  REQUIRE(at::equal(routing.expert_ids_TK, ids));
  require_close(routing.weights_TK, at::softmax(routing.logits_TE, 1).gather(1, ids), 1e-12, 0);
}

TEST_CASE("router: the bias of an expert with few tokens rises, that of one with many falls", "[model]") {
  const at::Tensor bias_E = at::tensor({0.5F, 0.0F, -0.25F, 1.0F});
  require_equal(updated_router_bias(bias_E, {7, 5, 3, 5}, 0.125), at::tensor({0.375F, 0.0F, -0.125F, 1.0F}));
  // The mean is 10/3, which no floating-point number is: the sign is that of integers.
  require_equal(updated_router_bias(at::zeros({3}), {4, 3, 3}, 1.0), at::tensor({-1.0F, 1.0F, 1.0F}));
  require_equal(bias_E, at::tensor({0.5F, 0.0F, -0.25F, 1.0F}));
}
