#include "model/losses.h"

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
