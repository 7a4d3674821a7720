#include "model/router.h"

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
