#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "base/error.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// Logits, then the gradients of what trains; x is bfloat16 or that in a wider type.
std::vector<at::Tensor> run(std::int64_t num_tokens, at::ScalarType dtype, bool x_trains, bool weight_trains) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const auto random = [&](std::vector<std::int64_t> shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat));
  };
  const at::Tensor x = random({num_tokens, 40}).to(at::kBFloat16).to(dtype).set_requires_grad(x_trains);
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor weight = random({6, 40}).to(wide).set_requires_grad(weight_trains);
  const at::Tensor logits = router_logits(x, weight), factors = random({num_tokens, 6}).to(wide);
  std::vector<at::Tensor> trained, results = {logits.detach()};
  if (x_trains) trained.push_back(x);
  if (weight_trains) trained.push_back(weight);
  if (trained.empty()) return results;
  for (const at::Tensor& gradient : torch::autograd::grad({logits}, trained, {factors})) results.push_back(gradient);
  return results;
}

}  // namespace

TEST_CASE("router_logits: of bfloat16 rows are float's, with the gradients of what trains", "[kernels]") {
  for (const std::int64_t num_tokens : {0, 1, 256, 1000}) {
    for (const auto& [x_trains, weight_trains] :
         {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
      INFO(num_tokens << " tokens; x trains: " << x_trains << ", the weight: " << weight_trains);
      const auto actual = run(num_tokens, at::kBFloat16, x_trains, weight_trains),
                 expected = run(num_tokens, at::kDouble, x_trains, weight_trains);
      REQUIRE(actual.size() == expected.size());
      REQUIRE(actual[0].scalar_type() == at::kFloat);
      require_close(actual[0], expected[0], kFloatTolerance, kFloatTolerance);
      if (x_trains) {
        REQUIRE(actual[1].scalar_type() == at::kBFloat16);
        require_close(actual[1], expected[1], 1e-5, kBf16Tolerance);
      }
      if (weight_trains) require_close(actual.back(), expected.back(), 1e-4, kFloatTolerance);
    }
  }
}

TEST_CASE("router_logits: the same bits on any number of threads", "[kernels]") {
  const int num_threads = at::get_num_threads();
  const auto many = run(1000, at::kBFloat16, true, true);
  at::set_num_threads(1);
  const auto one = run(1000, at::kBFloat16, true, true);
  at::set_num_threads(num_threads);
  for (std::size_t i = 0; i < many.size(); ++i) require_equal(many[i], one[i]);
}

TEST_CASE("router_logits: shapes and types that do not fit are internal errors", "[kernels]") {
  const at::Tensor x = at::zeros({3, 4}, at::kBFloat16);
  REQUIRE_NOTHROW(router_logits(x, at::zeros({2, 4})));
  REQUIRE_THROWS_AS(router_logits(x, at::zeros({2, 5})), InternalError);
  REQUIRE_THROWS_AS(router_logits(x, at::zeros({2, 4}, at::kBFloat16)), InternalError);
}
