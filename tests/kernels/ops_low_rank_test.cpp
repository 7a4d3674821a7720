// Low-rank changes of the experts' matrices on routed rows, against the dense changes. Letters: E experts, N rows,
// R rank, I inputs, O outputs.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "base/error.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

using Counts = std::vector<std::int64_t>;

at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed, at::ScalarType dtype = at::kDouble) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kDouble)).to(dtype);
}
at::Tensor trained(const at::Tensor& tensor) { return tensor.detach().clone().set_requires_grad(true); }

std::int64_t sum(const Counts& counts) { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); }

// The matrix scale B_e A_e of every expert, times its rows.
at::Tensor dense_changes(const at::Tensor& x_NI, const at::Tensor& a_ERI, const at::Tensor& b_EOR, const Counts& counts,
                         double scale) {
  std::vector<at::Tensor> parts;
  std::int64_t first = 0;
  for (std::size_t expert = 0; expert < counts.size(); ++expert) {
    const auto e = static_cast<std::int64_t>(expert);
    const at::Tensor delta_OI = scale * at::matmul(b_EOR[e], a_ERI[e]);
    parts.push_back(at::matmul(x_NI.narrow(0, first, counts[expert]), delta_OI.t()));
    first += counts[expert];
  }
  return at::cat(parts);
}

constexpr double kScale = 1.75;

struct Inputs {
  Inputs(const Counts& counts, std::int64_t R, std::int64_t I, std::int64_t O, at::ScalarType dtype) {
    const auto E = static_cast<std::int64_t>(counts.size());
    x = random_values({sum(counts), I}, 1, dtype);
    a = random_values({E, R, I}, 2, dtype);
    b = random_values({E, O, R}, 3, dtype);
    grad = random_values({sum(counts), O}, 4, dtype);
  }
  at::Tensor x, a, b, grad;
};

const std::vector<Counts> kCases = {{3, 0, 1, 40, 0},  {1, 31, 32, 33, 100}, {0, 0, 5, 0, 0},
                                    {64, 0, 0, 0, 40}, {0, 17, 1, 1, 2},     {7}};

void require_equal_to_dense(const Counts& counts, at::ScalarType dtype, double atol, double rtol) {
  INFO(at::toString(dtype) << ", first count " << counts[0] << " of " << sum(counts));
  const Inputs in(counts, 3, 16, 8, dtype);
  const std::vector<at::Tensor> low = {trained(in.x), trained(in.a), trained(in.b)},
                                high = {trained(in.x.to(at::kDouble)), trained(in.a.to(at::kDouble)),
                                        trained(in.b.to(at::kDouble))};
  const at::Tensor found = grouped_low_rank(low[0], low[1], low[2], counts, kScale),
                   expected = dense_changes(high[0], high[1], high[2], counts, kScale);
  REQUIRE(found.scalar_type() == dtype);
  require_close(found, expected, atol, rtol);
  const auto found_grads = torch::autograd::grad({found}, low, {in.grad}),
             expected_grads = torch::autograd::grad({expected}, high, {in.grad.to(at::kDouble)});
  for (std::size_t i = 0; i < low.size(); ++i) {
    INFO("gradient of input " << i);
    REQUIRE(found_grads[i].scalar_type() == dtype);
    require_close(found_grads[i], expected_grads[i], atol * (i == 0 ? 1 : 10), rtol);
  }
  const at::NoGradGuard no_grad;
  require_equal(grouped_low_rank(low[0], low[1], low[2], counts, kScale), found);
}

}  // namespace

TEST_CASE("grouped_low_rank: equals the experts' dense changes, empty experts and odd numbers of rows included",
          "[kernels]") {
  for (const Counts& counts : kCases) {
    require_equal_to_dense(counts, at::kDouble, kDoubleTolerance, kDoubleTolerance);
    // Sums of 16 products, then 3, of numbers around 1, and of up to 100 for the factors: sizes of 10 and of 100.
    require_equal_to_dense(counts, at::kFloat, 10 * kFloatTolerance, kFloatTolerance);
    // What goes from one factor to the other, of size 4 to 16, is rounded to bfloat16.
    require_equal_to_dense(counts, at::kBFloat16, 16 * kBf16Tolerance, kBf16Tolerance);
  }
}

TEST_CASE("grouped_low_rank: gradients match central differences, for any subset of what trains", "[kernels]") {
  const Counts counts = {3, 0, 1, 6, 0};
  const Inputs in(counts, 2, 3, 4, at::kDouble);
  for (const auto& trains : std::vector<std::vector<bool>>{
           {true, true, true}, {true, false, false}, {false, true, false}, {false, false, true}, {false, true, true}}) {
    std::vector<at::Tensor> inputs = {in.x.clone(), in.a.clone(), in.b.clone()};
    for (std::size_t i = 0; i < 3; ++i) inputs[i].set_requires_grad(trains[i]);
    require_gradients_match(
        [&](const std::vector<at::Tensor>& given) {
          return grouped_low_rank(given[0], given[1], given[2], counts, kScale);
        },
        inputs);
  }
}

TEST_CASE("grouped_low_rank: an expert without rows gets a gradient of exactly zero", "[kernels]") {
  const Counts counts = {3, 0, 1, 40, 0};
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const Inputs in(counts, 3, 16, 8, dtype);
    const at::Tensor a = trained(in.a), b = trained(in.b);
    grouped_low_rank(in.x, a, b, counts, kScale).sum().backward();
    for (const std::int64_t e : {1, 4}) {
      REQUIRE((a.grad()[e] == 0).all().item<bool>());
      REQUIRE((b.grad()[e] == 0).all().item<bool>());
    }
    for (const std::int64_t e : {0, 2, 3}) REQUIRE((a.grad()[e] != 0).any().item<bool>());
  }
}

TEST_CASE("grouped_low_rank: factors that are no contiguous tensors", "[kernels]") {
  const Counts counts = {3, 0, 1, 40, 0};
  const Inputs in(counts, 3, 16, 8, at::kDouble);
  const at::Tensor b = in.b.permute({1, 2, 0}).contiguous().permute({2, 0, 1});  // as peft's file has it
  require_close(grouped_low_rank(in.x, in.a, b, counts, kScale), dense_changes(in.x, in.a, in.b, counts, kScale),
                kDoubleTolerance, kDoubleTolerance);
  const at::Tensor trained_b = trained(in.b).permute({1, 2, 0}).contiguous().permute({2, 0, 1});
  const auto grads =
      torch::autograd::grad({grouped_low_rank(in.x, in.a, trained_b, counts, kScale)}, {trained_b}, {in.grad});
  const at::Tensor plain_b = trained(in.b);
  require_close(grads[0],
                torch::autograd::grad({dense_changes(in.x, in.a, plain_b, counts, kScale)}, {plain_b}, {in.grad})[0],
                kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("grouped_low_rank: without any row the result is empty and gradients are zero", "[kernels]") {
  const at::Tensor x = trained(at::zeros({0, 4}, at::kDouble)), a = trained(random_values({2, 3, 4}, 1)),
                   b = trained(random_values({2, 5, 3}, 2));
  const at::Tensor y = grouped_low_rank(x, a, b, {0, 0}, kScale);
  REQUIRE(y.sizes() == at::IntArrayRef({0, 5}));
  y.sum().backward();
  require_equal(a.grad(), at::zeros({2, 3, 4}));
  require_equal(b.grad(), at::zeros({2, 5, 3}));
}

TEST_CASE("grouped_low_rank: shapes, dtypes and counts that do not fit are internal errors", "[kernels]") {
  const Counts counts = {3, 1};
  const at::Tensor x = random_values({4, 6}, 1), a = random_values({2, 3, 6}, 2), b = random_values({2, 5, 3}, 3);
  REQUIRE_NOTHROW(grouped_low_rank(x, a, b, counts, 1.0));
  REQUIRE_THROWS_AS(grouped_low_rank(x, a, b, {3, 2}, 1.0), InternalError);
  REQUIRE_THROWS_AS(grouped_low_rank(x, a, b, {4}, 1.0), InternalError);
  REQUIRE_THROWS_AS(grouped_low_rank(x, a, random_values({2, 5, 4}, 3), counts, 1.0), InternalError);
  REQUIRE_THROWS_AS(grouped_low_rank(x, random_values({2, 3, 7}, 2), b, counts, 1.0), InternalError);
  REQUIRE_THROWS_AS(grouped_low_rank(x.to(at::kFloat), a, b, counts, 1.0), InternalError);
}
