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

constexpr std::int64_t kTokens = 700, kD = 24, kF = 40, kRank = 3;

// What a case consists of: x, the weights of gate, up and down, and the factors of two changes of gate_up and one of
// down; and which of these train.
struct Case {
  at::Tensor x, grad_y;
  RoutedRows rows;
  std::vector<at::Tensor> leaves;  // x, gate.., up.., down.., a, b, a, b, a, b
  std::size_t E = 0;
  bool has_changes = false;

  ExpertMatrices matrices(const std::vector<at::Tensor>& in) const {
    const auto at = [&](std::size_t i) { return in.begin() + 1 + static_cast<std::ptrdiff_t>(i); };
    ExpertMatrices experts{{at(0), at(E)}, {at(E), at(2 * E)}, {at(2 * E), at(3 * E)}};
    if (!has_changes) return experts;
    const auto factors = [&](std::size_t i, double scale) {
      return ExpertFactors{in[1 + 3 * E + i], in[2 + 3 * E + i], scale};
    };
    experts.gate_up = {factors(0, 0.5), factors(2, 2.0)};
    experts.down = {factors(4, 0.25)};
    return experts;
  }
};

// `ids`: the experts that token t chooses are (t * t + k * stride) % E, so that counts differ; the last has no rows.
Case make_case(std::int64_t num_tokens, std::int64_t E, std::int64_t K, bool has_changes) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const auto random = [&](std::vector<std::int64_t> shape, double size) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat)) * size;
  };
  Case result;
  result.E = static_cast<std::size_t>(E), result.has_changes = has_changes;
  const at::Tensor ids = at::empty({num_tokens, K}, at::kLong);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    for (std::int64_t k = 0; k < K; ++k) ids[t][k] = (t * t % 5 + k) % (E - 1);
  }
  result.rows = route_rows(ids, E);
  result.leaves = {random({num_tokens, kD}, 1.0)};
  for (std::int64_t e = 0; e < 2 * E; ++e) result.leaves.push_back(random({kF, kD}, 0.2));
  for (std::int64_t e = 0; e < E; ++e) result.leaves.push_back(random({kD, kF}, 0.2));
  if (has_changes) {
    for (const auto& [I, O] : {std::pair{kD, 2 * kF}, {kD, 2 * kF}, {kF, kD}}) {
      result.leaves.push_back(random({E, kRank, I}, 0.2));
      result.leaves.push_back(random({E, O, kRank}, 0.2));
    }
  }
  result.grad_y = random({num_tokens, K, kD}, 1.0);
  return result;
}

// The output, then the gradients of what `trains` says.
template <class Ffn>
std::vector<at::Tensor> run(Ffn ffn, const Case& in, at::ScalarType dtype, const std::vector<bool>& trains) {
  std::vector<at::Tensor> given, trained;
  for (std::size_t i = 0; i < in.leaves.size(); ++i) {
    given.push_back(in.leaves[i].to(dtype, /*non_blocking=*/false, /*copy=*/true).set_requires_grad(trains[i]));
    if (trains[i]) trained.push_back(given.back());
  }
  const at::Tensor y = ffn(given[0], in.rows, in.matrices(given));
  std::vector<at::Tensor> results = {y.detach()};
  if (trained.empty()) return results;
  for (at::Tensor& gradient : torch::autograd::grad({y}, trained, {in.grad_y.to(dtype)})) results.push_back(gradient);
  return results;
}

std::vector<bool> training(const Case& in, const std::vector<bool>& of_part) {
  std::vector<bool> trains(in.leaves.size());
  for (std::size_t i = 0; i < trains.size(); ++i) {
    const std::size_t part = i == 0 ? 0 : i <= 3 * in.E ? 1 + (i - 1) / in.E : 4 + (i - 1 - 3 * in.E);
    trains[i] = of_part[part];
  }
  return trains;
}

// Of x, gate, up, down, then a and b of the three changes.
const std::vector<std::vector<bool>> kTraining = {
    {true, true, true, true, true, true, true, true, true, true},
    {true, false, false, false, false, false, false, false, false, false},
    {false, false, false, true, false, false, false, false, false, false},
    {false, true, false, false, false, false, false, false, true, false},
    {true, false, false, false, true, true, true, true, true, true},
    {false, false, false, false, false, false, false, true, false, true},
    {true, false, true, false, false, false, true, false, false, false},
    {false, false, false, false, false, false, false, false, false, false}};

}  // namespace

TEST_CASE("expert_ffn: output and gradients equal product after product in double, whatever trains", "[kernels]") {
  for (const bool has_changes : {false, true}) {
    const Case in = make_case(kTokens, 4, 2, has_changes);
    REQUIRE(in.rows.counts_E[3] == 0);
    for (const auto& of_part : kTraining) {
      const std::vector<bool> trains = training(in, of_part);
      const auto expected = run(expert_ffn_reference, in, at::kDouble, trains);
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        INFO(at::toString(dtype) << ", changes " << has_changes << ", trains "
                                 << at::IntArrayRef(std::vector<std::int64_t>(of_part.begin(), of_part.end())));
        const auto actual = run(expert_ffn, in, dtype, trains);
        REQUIRE(actual.size() == expected.size());
        for (std::size_t i = 0; i < actual.size(); ++i) {
          INFO("result " << i << " of output and gradients");
          REQUIRE(actual[i].scalar_type() == dtype);
          const double largest = expected[i].abs().max().item<double>();
          const double tolerance = dtype == at::kFloat ? kFloatTolerance : 4 * kBf16Tolerance;
          require_close(actual[i], expected[i], tolerance * std::max(largest, 1.0), tolerance);
        }
      }
    }
  }
}

TEST_CASE("expert_ffn: bfloat16 is as near to double as product after product is", "[kernels]") {
  const Case in = make_case(kTokens, 4, 2, true);
  const std::vector<bool> trains(in.leaves.size(), true);
  const auto exact = run(expert_ffn_reference, in, at::kDouble, trains);
  const auto whole = run(expert_ffn, in, at::kBFloat16, trains),
             apart = run(expert_ffn_reference, in, at::kBFloat16, trains);
  const auto error = [](const at::Tensor& found, const at::Tensor& expected) {
    return (found.to(at::kDouble) - expected).norm().item<double>();
  };
  for (std::size_t i = 0; i < exact.size(); ++i) {
    INFO("result " << i << " of output and gradients");
    // Roundings fall differently, and the narrow gradient of A x has one more, behind gate's part of it.
    REQUIRE(error(whole[i], exact[i]) <= 1.2 * error(apart[i], exact[i]));
  }
}

TEST_CASE("expert_ffn: results are the same on any number of threads, bit for bit", "[kernels]") {
  const Case in = make_case(4000, 3, 2, true);  // several pieces an expert
  const std::vector<bool> trains(in.leaves.size(), true);
  const int num_threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = run(expert_ffn, in, at::kBFloat16, trains);
  for (const int threads : {2, 3}) {
    at::set_num_threads(threads);
    const auto many = run(expert_ffn, in, at::kBFloat16, trains);
    for (std::size_t i = 0; i < one.size(); ++i) require_equal(many[i], one[i]);
  }
  at::set_num_threads(num_threads);
}

TEST_CASE("expert_ffn: several pieces of an expert add up, and recording changes nothing", "[kernels]") {
  const Case in = make_case(4000, 3, 2, true);
  const std::vector<bool> trains(in.leaves.size(), true), none(in.leaves.size(), false);
  const auto expected = run(expert_ffn_reference, in, at::kDouble, trains);
  const auto actual = run(expert_ffn, in, at::kFloat, trains);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    INFO("result " << i << " of output and gradients");
    require_close(actual[i], expected[i], kFloatTolerance * std::max(1.0, expected[i].abs().max().item<double>()),
                  kFloatTolerance);
  }
  require_equal(run(expert_ffn, in, at::kFloat, none)[0], actual[0]);
}

TEST_CASE("expert_ffn: gradients of the reference match central differences", "[kernels]") {
  const Case in = make_case(7, 3, 2, true);
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& leaf : in.leaves)
    leaves.push_back(leaf.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true).set_requires_grad(true));
  require_gradients_match([&](const std::vector<at::Tensor>& x) { return expert_ffn(x[0], in.rows, in.matrices(x)); },
                          leaves);
}

TEST_CASE("expert_ffn: without tokens the result is empty and gradients are zero", "[kernels]") {
  const Case in = make_case(0, 3, 2, true);
  const auto results = run(expert_ffn, in, at::kFloat, std::vector<bool>(in.leaves.size(), true));
  REQUIRE(results[0].sizes() == at::IntArrayRef({0, 2, kD}));
  for (std::size_t i = 2; i < results.size(); ++i) REQUIRE(results[i].abs().sum().item<double>() == 0.0);
}

TEST_CASE("expert_ffn: shapes and dtypes that do not fit are internal errors", "[kernels]") {
  const Case in = make_case(10, 3, 2, true);
  const auto fails = [&](std::size_t i, const at::Tensor& other) {
    std::vector<at::Tensor> given = in.leaves;
    given[i] = other;
    REQUIRE_THROWS_AS(expert_ffn(given[0], in.rows, in.matrices(given)), InternalError);
  };
  REQUIRE_NOTHROW(expert_ffn(in.leaves[0], in.rows, in.matrices(in.leaves)));
  fails(0, in.leaves[0].narrow(0, 0, 9));
  fails(1, in.leaves[1].t());
  fails(5, in.leaves[5].to(at::kBFloat16));
  fails(10, in.leaves[10].narrow(0, 0, 2));
  fails(11, in.leaves[11].narrow(1, 0, kF));
}
