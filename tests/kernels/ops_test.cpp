#include "kernels/ops.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed, at::ScalarType dtype = at::kDouble) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kDouble)).to(dtype);
}
at::Tensor trained(const at::Tensor& tensor) { return tensor.detach().clone().set_requires_grad(true); }

// The same op in float and in bfloat16 against double.
void require_low_precision_matches(const std::function<at::Tensor(const std::vector<at::Tensor>&, at::ScalarType)>& op,
                                   const std::vector<at::Tensor>& inputs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    INFO("dtype " << at::toString(dtype));
    std::vector<at::Tensor> low, high;
    for (const at::Tensor& input : inputs) {
      low.push_back(trained(input.to(dtype)));
      high.push_back(trained(low.back().to(at::kDouble)));
    }
    const at::Tensor low_result = op(low, dtype), high_result = op(high, at::kDouble);
    const double rtol = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
    REQUIRE(low_result.scalar_type() == dtype);
    require_close(low_result, high_result, kFloatTolerance, rtol);
    const at::Tensor factors = random_values(low_result.sizes(), 99, dtype);
    const auto low_grads = torch::autograd::grad({low_result}, low, {factors});
    const auto high_grads = torch::autograd::grad({high_result}, high, {factors.to(at::kDouble)});
    for (std::size_t i = 0; i < low.size(); ++i) {
      INFO("gradient " << i);
      require_close(low_grads[i], high_grads[i], kFloatTolerance, rtol);
    }
  }
}

}  // namespace

TEST_CASE("rms_norm: the definition, worked out", "[kernels]") {
  const at::Tensor y = rms_norm(at::tensor({3.0, 4.0}), at::tensor({1.0, 2.0}), 0.0);
  const double root = std::sqrt(12.5);
  require_close(y, at::tensor({3 / root, 8 / root}), kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("rms_norm: gradients match central differences", "[kernels]") {
  const auto f = [](const std::vector<at::Tensor>& in) { return rms_norm(in[0], in[1], 1e-5); };
  require_gradients_match(f, {trained(random_values({2, 3, 7}, 1)), trained(random_values({7}, 2))});
  require_gradients_match(f, {random_values({3, 5}, 1), trained(random_values({5}, 2))});
  require_gradients_match(f, {trained(random_values({3, 5}, 1)), random_values({5}, 2)});
}

TEST_CASE("rms_norm: float and bfloat16 agree with double", "[kernels]") {
  for (const std::int64_t num_rows : {1, 63, 300}) {
    const at::Tensor weight = random_values({33}, 2, at::kFloat);
    require_low_precision_matches(
        [&](const std::vector<at::Tensor>& in, at::ScalarType dtype) {
          return rms_norm(in[0], weight.to(dtype == at::kDouble ? at::kDouble : at::kFloat), 1e-5);
        },
        {random_values({num_rows, 33}, 1)});
  }
}

TEST_CASE("rms_norm: the weight gradient sums many rows and does not depend on the number of threads", "[kernels]") {
  const at::Tensor x = random_values({1500, 40}, 1, at::kFloat), weight = random_values({40}, 2, at::kFloat);
  const at::Tensor factors = random_values({1500, 40}, 3, at::kFloat);
  const auto gradient = [&](const at::Tensor& x_in, const at::Tensor& weight_in, const at::Tensor& factors_in) {
    const at::Tensor w = trained(weight_in);
    return torch::autograd::grad({rms_norm(x_in, w, 1e-5)}, {w}, {factors_in})[0];
  };
  const int num_threads = at::get_num_threads();
  const at::Tensor many = gradient(x, weight, factors);
  at::set_num_threads(1);
  const at::Tensor one = gradient(x, weight, factors);
  at::set_num_threads(num_threads);
  require_equal(many, one);
  const at::Tensor exact = gradient(x.to(at::kDouble), weight.to(at::kDouble), factors.to(at::kDouble));
  // Sums of 1500 values around 1: their rounding errors add up beyond the tolerance of a single value.
  require_close(many, exact, 1e-4, kFloatTolerance);
}

TEST_CASE("rms_norm: rows that are not contiguous give the same result", "[kernels]") {
  const at::Tensor x = random_values({6, 4}, 1), weight = random_values({6}, 2);
  require_equal(rms_norm(x.t(), weight, 1e-5), rms_norm(x.t().contiguous(), weight, 1e-5));
}

TEST_CASE("rms_norm: a weight of another size or dtype is an internal error", "[kernels]") {
  REQUIRE_THROWS_AS(rms_norm(at::ones({2, 4}), at::ones({5}), 1e-5), InternalError);
  REQUIRE_THROWS_AS(rms_norm(at::ones({2, 4}), at::ones({4}, at::kBFloat16), 1e-5), InternalError);
  REQUIRE_THROWS_AS(rms_norm(at::ones({2, 4}, at::kLong), at::ones({4}), 1e-5), InternalError);
}

TEST_CASE("rope: half-split pairs turn by their angle", "[kernels]") {
  // Width 4: pairs (0, 2) and (1, 3), by 90 and 180 degrees.
  const at::Tensor x = at::tensor({1.0, 2.0, 3.0, 4.0}).view({1, 1, 4});
  const at::Tensor y = rope(x, at::tensor({0.0, -1.0}).view({1, 2}), at::tensor({1.0, 0.0}).view({1, 2}));
  require_equal(y.flatten(), at::tensor({-3.0, -2.0, 1.0, -4.0}));
}

TEST_CASE("rope: gradients match central differences, also of a slice of a fused matrix", "[kernels]") {
  const at::Tensor angle = random_values({3, 2}, 1);
  require_gradients_match([&](const std::vector<at::Tensor>& in) { return rope(in[0], angle.cos(), angle.sin()); },
                          {trained(random_values({3, 2, 4}, 2))});
  require_gradients_match(
      [&](const std::vector<at::Tensor>& in) { return rope(in[0].narrow(1, 1, 2), angle.cos(), angle.sin()); },
      {trained(random_values({3, 4, 4}, 2))});
}

TEST_CASE("rope: float and bfloat16 agree with double", "[kernels]") {
  const at::Tensor angle = random_values({50, 9}, 1, at::kFloat);
  require_low_precision_matches(
      [&](const std::vector<at::Tensor>& in, at::ScalarType dtype) {
        const auto table = dtype == at::kDouble ? at::kDouble : at::kFloat;
        return rope(in[0], angle.cos().to(table), angle.sin().to(table));
      },
      {random_values({50, 3, 18}, 2)});
}

TEST_CASE("rope: the backward rotation undoes the forward one", "[kernels]") {
  const at::Tensor angle = random_values({4, 8}, 1), x = random_values({4, 2, 16}, 2);
  require_close(rope(rope(x, angle.cos(), angle.sin()), angle.cos(), -angle.sin()), x, kDoubleTolerance,
                kDoubleTolerance);
}

TEST_CASE("swiglu: gradients match central differences", "[kernels]") {
  require_gradients_match([](const std::vector<at::Tensor>& in) { return swiglu(in[0], in[1]); },
                          {trained(random_values({3, 5}, 1)), trained(random_values({3, 5}, 2))});
}

TEST_CASE("swiglu: float and bfloat16 agree with double, also on many threads", "[kernels]") {
  require_low_precision_matches([](const std::vector<at::Tensor>& in, at::ScalarType) { return swiglu(in[0], in[1]); },
                                {random_values({301, 257}, 1), random_values({301, 257}, 2)});
}

TEST_CASE("swiglu: halves of a fused projection need no copy by the caller", "[kernels]") {
  const at::Tensor both = random_values({4, 10}, 1);
  const auto halves = both.split(5, 1);
  require_equal(swiglu(halves[0], halves[1]), swiglu(halves[0].contiguous(), halves[1].contiguous()));
}

TEST_CASE("dag_pairs: equals all pairs written out", "[kernels]") {
  for (std::int64_t K = 1; K <= 8; ++K) {
    const at::Tensor abce = random_values({5, K, 4 * 6}, 1);
    const auto part = abce.split(6, 2);
    const at::Tensor gate = at::silu(part[0].unsqueeze(2) + part[1].unsqueeze(1));
    const at::Tensor value = part[2].unsqueeze(2) + part[3].unsqueeze(1);
    require_close(dag_pairs(abce), (gate * value).sum(2), kDoubleTolerance, kDoubleTolerance);
  }
}

TEST_CASE("dag_pairs: gradients match central differences for 1 to 8 nodes", "[kernels]") {
  for (const std::int64_t K : {1, 2, 4, 8}) {
    require_gradients_match([](const std::vector<at::Tensor>& in) { return dag_pairs(in[0]); },
                            {trained(random_values({2, K, 4 * 3}, 1))});
  }
}

TEST_CASE("dag_pairs: float agrees with double", "[kernels]") {
  require_low_precision_matches([](const std::vector<at::Tensor>& in, at::ScalarType) { return dag_pairs(in[0]); },
                                {random_values({40, 4, 4 * 19}, 1)});
}

TEST_CASE("dag_pairs: the order of the nodes does not matter", "[kernels]") {
  const at::Tensor abce = random_values({5, 4, 4 * 6}, 1), order = at::tensor({2, 0, 3, 1});
  require_close(dag_pairs(abce.index_select(1, order)), dag_pairs(abce).index_select(1, order), kDoubleTolerance,
                kDoubleTolerance);
}

TEST_CASE("ops: no graph is recorded where no gradient is wanted", "[kernels]") {
  const at::Tensor x = trained(random_values({4, 8}, 1, at::kFloat)), weight = at::ones({8});
  REQUIRE_FALSE(rms_norm(x.detach(), weight, 1e-5).requires_grad());
  const at::NoGradGuard no_grad;
  REQUIRE_FALSE(rms_norm(x, weight, 1e-5).requires_grad());
  REQUIRE_FALSE(swiglu(x, x).requires_grad());
  REQUIRE_FALSE(dag_pairs(x.view({4, 1, 8})).requires_grad());
}

TEST_CASE("ops: an empty batch passes through every op", "[kernels]") {
  const at::Tensor weight = at::ones({8});
  REQUIRE(rms_norm(at::empty({0, 8}), weight, 1e-5).sizes() == at::IntArrayRef({0, 8}));
  REQUIRE(rope(at::empty({0, 2, 8}), at::empty({0, 4}), at::empty({0, 4})).sizes() == at::IntArrayRef({0, 2, 8}));
  REQUIRE(swiglu(at::empty({0, 8}), at::empty({0, 8})).sizes() == at::IntArrayRef({0, 8}));
  REQUIRE(dag_pairs(at::empty({0, 2, 8})).sizes() == at::IntArrayRef({0, 2, 2}));
  REQUIRE(segment_attention(at::empty({0, 2, 8}), at::empty({0, 1, 8}), at::empty({0, 1, 8}), {0}).size(0) == 0);
}
