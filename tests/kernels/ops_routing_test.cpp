#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"
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

// K different experts of E for each of T tokens.
at::Tensor random_ids(std::int64_t num_tokens, std::int64_t K, std::int64_t E) {
  return std::get<1>(random_values({num_tokens, E}, 3).topk(K, 1));
}

const std::vector<std::int64_t> kCounts = {3, 0, 1, 40, 0};

std::vector<at::Tensor> random_weights(std::int64_t outputs, std::int64_t inputs, at::ScalarType dtype = at::kDouble) {
  std::vector<at::Tensor> weights;
  for (std::size_t e = 0; e < kCounts.size(); ++e) weights.push_back(random_values({outputs, inputs}, 10 + e, dtype));
  return weights;
}

at::Tensor expert_by_expert(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> parts;
  std::int64_t first = 0;
  for (std::size_t e = 0; e < kCounts.size(); ++e) {
    parts.push_back(at::linear(x.narrow(0, first, kCounts[e]), weights[e]));
    first += kCounts[e];
  }
  return at::cat(parts);
}

}  // namespace

TEST_CASE("route_rows: rows are sorted by expert, ties in token order", "[kernels]") {
  const RoutedRows rows = route_rows(at::tensor({2, 0, 0, 3, 2, 0}, at::kLong).view({3, 2}), 5);
  REQUIRE(rows.counts_E == std::vector<std::int64_t>{3, 0, 2, 1, 0});
  require_equal(rows.token_of_row_R, at::tensor({0, 1, 2, 0, 2, 1}));
  require_equal(rows.row_of_slot_TK, at::tensor({3, 0, 1, 5, 4, 2}).view({3, 2}));
}

TEST_CASE("route_rows: every slot has one row, and that row is its token's", "[kernels]") {
  const at::Tensor ids = random_ids(50, 3, 7);
  const RoutedRows rows = route_rows(ids, 7);
  require_equal(std::get<0>(rows.row_of_slot_TK.flatten().sort()), at::arange(150));
  require_equal(rows.token_of_row_R.index_select(0, rows.row_of_slot_TK.flatten()).view({50, 3}),
                at::arange(50).unsqueeze(1).expand({50, 3}));
  REQUIRE(at::tensor(rows.counts_E).equal(ids.flatten().bincount({}, 7)));
}

TEST_CASE("route_rows: an expert that does not exist is an internal error", "[kernels]") {
  REQUIRE_THROWS_AS(route_rows(at::full({1, 1}, 4, at::kLong), 4), InternalError);
  REQUIRE_THROWS_AS(route_rows(at::full({1, 1}, -1, at::kLong), 4), InternalError);
  REQUIRE_THROWS_AS(route_rows(at::zeros({1, 1}, at::kInt), 4), InternalError);
}

TEST_CASE("gather_routed and ungather_routed: there and back is one copy per slot", "[kernels]") {
  const RoutedRows rows = route_rows(random_ids(20, 3, 6), 6);
  const at::Tensor x = random_values({20, 5}, 1);
  require_equal(ungather_routed(gather_routed(x, rows), rows), x.unsqueeze(1).expand({20, 3, 5}));
}

TEST_CASE("gather_routed and ungather_routed: gradients match central differences", "[kernels]") {
  const RoutedRows rows = route_rows(random_ids(6, 2, 4), 4);
  require_gradients_match([&](const std::vector<at::Tensor>& in) { return gather_routed(in[0], rows); },
                          {trained(random_values({6, 3}, 1))});
  require_gradients_match([&](const std::vector<at::Tensor>& in) { return ungather_routed(in[0], rows); },
                          {trained(random_values({12, 3}, 1))});
}

TEST_CASE("gather_routed: the gradient of a token is summed in float, whatever the dtype", "[kernels]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const RoutedRows rows = route_rows(random_ids(30, 4, 6), 6);
    const at::Tensor x = trained(random_values({30, 133}, 1, dtype)), grad = random_values({120, 133}, 2, dtype);
    const at::Tensor actual = torch::autograd::grad({gather_routed(x, rows)}, {x}, {grad})[0];
    const at::Tensor by_slot = grad.to(at::kFloat).index_select(0, rows.row_of_slot_TK.flatten()).view({30, 4, 133});
    at::Tensor expected = at::zeros({30, 133});
    for (std::int64_t k = 0; k < 4; ++k) expected = expected + by_slot.select(1, k);
    require_equal(actual, expected.to(dtype));
  }
}

TEST_CASE("grouped_linear: equals one linear map per expert, empty experts included", "[kernels]") {
  const at::Tensor x = random_values({44, 6}, 1);
  const auto weights = random_weights(5, 6);
  require_close(grouped_linear(x, weights, kCounts), expert_by_expert(x, weights), kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("grouped_linear: gradients match central differences, for any subset of what trains", "[kernels]") {
  // Which of x and the five weights train; experts 1 and 4 have no rows.
  const std::vector<std::vector<bool>> subsets = {{true, true, true, true, true, true},
                                                  {true, false, false, false, false, false},
                                                  {false, true, true, false, false, false}};
  for (const auto& trains : subsets) {
    std::vector<at::Tensor> inputs = {random_values({44, 3}, 1)};
    for (const at::Tensor& weight : random_weights(2, 3)) inputs.push_back(weight);
    for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i].set_requires_grad(trains[i]);
    require_gradients_match(
        [](const std::vector<at::Tensor>& in) {
          return grouped_linear(in[0], std::vector<at::Tensor>(in.begin() + 1, in.end()), kCounts);
        },
        inputs);
  }
}

TEST_CASE("grouped_linear: an expert without rows gets a zero gradient, a frozen one none", "[kernels]") {
  auto weights = random_weights(5, 6, at::kFloat);
  for (const std::size_t e : {0U, 1U}) weights[e].set_requires_grad(true);
  grouped_linear(random_values({44, 6}, 1, at::kFloat), weights, kCounts).sum().backward();
  REQUIRE(weights[1].grad().defined());
  require_equal(weights[1].grad(), at::zeros({5, 6}));
  REQUIRE_FALSE(weights[2].grad().defined());
}

TEST_CASE("grouped_linear: float and bfloat16 agree with double", "[kernels]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    INFO("dtype " << at::toString(dtype));
    const at::Tensor x = trained(random_values({44, 48}, 1, dtype)), grad = random_values({44, 40}, 2, dtype);
    std::vector<at::Tensor> low = {x}, high = {trained(x.to(at::kDouble))};
    for (const at::Tensor& weight : random_weights(40, 48, dtype)) {
      low.push_back(trained(weight));
      high.push_back(trained(weight.to(at::kDouble)));
    }
    const at::Tensor low_y = grouped_linear(low[0], {low.begin() + 1, low.end()}, kCounts);
    const at::Tensor high_y = expert_by_expert(high[0], {high.begin() + 1, high.end()});
    // Sums of some 40 products of size 1: their error is that of numbers of size 10.
    const double atol = dtype == at::kFloat ? 1e-4 : 1e-2,
                 rtol = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
    REQUIRE(low_y.scalar_type() == dtype);
    require_close(low_y, high_y, atol, rtol);
    const auto low_grads = torch::autograd::grad({low_y}, low, {grad});
    const auto high_grads = torch::autograd::grad({high_y}, high, {grad.to(at::kDouble)});
    for (std::size_t i = 0; i < low.size(); ++i) {
      INFO("gradient " << i);
      require_close(low_grads[i], high_grads[i], atol, rtol);
    }
  }
}

TEST_CASE("grouped_linear: rounding the rows up for bfloat16 mixes no expert with another", "[kernels]") {
  // Counts around the multiple of 32: less than one, exactly one, several; the last expert small or large; few rows in
  // all.
  const std::vector<std::vector<std::int64_t>> cases = {
      {1, 31, 32, 33, 100}, {100, 2, 0, 3, 1}, {0, 0, 5, 0, 0}, {64, 0, 0, 0, 40}};
  for (const auto& counts : cases) {
    const std::int64_t num_rows = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    const at::Tensor x = trained(random_values({num_rows, 16}, 1, at::kBFloat16));
    const at::Tensor grad = random_values({num_rows, 8}, 2, at::kBFloat16);
    std::vector<at::Tensor> inputs = {x};
    for (std::uint64_t e = 0; e < 5; ++e) inputs.push_back(trained(random_values({8, 16}, 10 + e, at::kBFloat16)));
    const at::Tensor y = grouped_linear(x, {inputs.begin() + 1, inputs.end()}, counts);
    const auto grads = torch::autograd::grad({y}, inputs, {grad});
    std::int64_t first = 0;
    for (std::size_t e = 0; e < 5; ++e) {
      INFO("expert " << e << " with " << counts[e] << " of " << num_rows << " rows");
      const auto rows = [&](const at::Tensor& all) { return all.detach().narrow(0, first, counts[e]).to(at::kDouble); };
      const at::Tensor weight = inputs[1 + e].detach().to(at::kDouble);
      // Sums of 16 products, and of up to 100 for the weights, of numbers around 1.
      require_close(rows(y), at::mm(rows(x), weight.t()), 1e-2, kBf16Tolerance);
      require_close(rows(grads[0]), at::mm(rows(grad), weight), 1e-2, kBf16Tolerance);
      require_close(grads[1 + e], at::mm(rows(grad).t(), rows(x)), 1e-2, kBf16Tolerance);
      first += counts[e];
    }
  }
}

TEST_CASE("grouped_linear: a weight that is a slice of a larger tensor works without a copy", "[kernels]") {
  const at::Tensor stacked = random_values({5, 7, 6}, 1), x = random_values({44, 6}, 2);
  std::vector<at::Tensor> slices, transposed;
  for (std::int64_t e = 0; e < 5; ++e) {
    slices.push_back(stacked[e].narrow(0, 1, 4));
    transposed.push_back(stacked[e].narrow(0, 1, 4).t().contiguous().t());
  }
  require_close(grouped_linear(x, slices, kCounts), expert_by_expert(x, slices), kDoubleTolerance, kDoubleTolerance);
  require_close(grouped_linear(x, transposed, kCounts), expert_by_expert(x, slices), kDoubleTolerance,
                kDoubleTolerance);
}

TEST_CASE("grouped_linear: without any row the result is empty and gradients are zero", "[kernels]") {
  std::vector<at::Tensor> weights = {trained(random_values({3, 2}, 1)), trained(random_values({3, 2}, 2))};
  const at::Tensor x = trained(random_values({0, 2}, 1)), y = grouped_linear(x, weights, {0, 0});
  REQUIRE(y.sizes() == at::IntArrayRef({0, 3}));
  y.sum().backward();
  require_equal(weights[0].grad(), at::zeros({3, 2}));
}

TEST_CASE("grouped_linear: counts that do not add up and weights that do not fit are internal errors", "[kernels]") {
  const auto weights = random_weights(5, 6);
  REQUIRE_THROWS_AS(grouped_linear(random_values({43, 6}, 1), weights, kCounts), InternalError);
  REQUIRE_THROWS_AS(grouped_linear(random_values({44, 7}, 1), weights, kCounts), InternalError);
  REQUIRE_THROWS_AS(grouped_linear(random_values({44, 6}, 1, at::kFloat), weights, kCounts), InternalError);
  REQUIRE_THROWS_AS(grouped_linear(random_values({44, 6}, 1), weights, {44}), InternalError);
}
