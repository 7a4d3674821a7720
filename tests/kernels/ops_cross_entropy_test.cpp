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

constexpr std::int64_t kIgnored = -100;

struct Inputs {
  at::Tensor hidden, weight, labels;
};
// About a third of the labels is ignored.
Inputs random_inputs(std::int64_t num_tokens, std::int64_t D, std::int64_t V, at::ScalarType dtype) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const auto random = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kDouble));
  };
  const at::Tensor labels = at::randint(0, V, {num_tokens}, generator, at::kLong);
  return {random({num_tokens, D}).to(dtype), random({V, D}).to(dtype),
          labels.masked_fill(random({num_tokens}) < -0.4, kIgnored)};
}
at::Tensor expected_loss(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels, double scale) {
  return at::cross_entropy_loss(at::linear(hidden, weight), labels, {}, at::Reduction::Sum, kIgnored) * scale;
}
// From the definition, term by term: log p = logits - logsumexp; rows without a label are left out.
struct Terms {
  at::Tensor nll, uniform;
};
Terms expected_terms(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels, double scale) {
  const at::Tensor rows = at::nonzero(labels != kIgnored).squeeze(1);
  const at::Tensor logits = at::linear(hidden, weight).index_select(0, rows);
  const at::Tensor log_p = logits - at::logsumexp(logits, {1}, true);
  return {-log_p.gather(1, labels.index_select(0, rows).unsqueeze(1)).sum() * scale,
          -log_p.sum() / static_cast<double>(weight.size(0)) * scale};
}
at::Tensor trained(const at::Tensor& tensor) { return tensor.detach().clone().set_requires_grad(true); }

}  // namespace

TEST_CASE("masked_cross_entropy: equals LibTorch's cross entropy, loss and gradients, over several chunks",
          "[kernels]") {
  for (const std::int64_t num_tokens : {1, 100, 1700}) {
    INFO(num_tokens << " tokens");
    const Inputs in = random_inputs(num_tokens, 8, 50, at::kDouble);
    const std::vector<at::Tensor> ours = {trained(in.hidden), trained(in.weight)},
                                  theirs = {trained(in.hidden), trained(in.weight)};
    const at::Tensor loss = masked_cross_entropy(ours[0], ours[1], in.labels, 0.125);
    const at::Tensor expected = expected_loss(theirs[0], theirs[1], in.labels, 0.125);
    require_close(loss, expected, kDoubleTolerance, kDoubleTolerance);
    // A factor of its own, as a caller's division by the micro batches gives.
    const auto grads = torch::autograd::grad({loss * 3}, ours),
               expected_grads = torch::autograd::grad({expected * 3}, theirs);
    for (std::size_t i = 0; i < ours.size(); ++i)
      require_close(grads[i], expected_grads[i], kDoubleTolerance, kDoubleTolerance);
  }
}

TEST_CASE("masked_cross_entropy: gradients match central differences", "[kernels]") {
  const Inputs in = random_inputs(7, 3, 5, at::kDouble);
  REQUIRE((in.labels == kIgnored).any().item<bool>());
  const auto f = [&](const std::vector<at::Tensor>& x) { return masked_cross_entropy(x[0], x[1], in.labels, 0.3); };
  require_gradients_match(f, {trained(in.hidden), trained(in.weight)});
  require_gradients_match(f, {in.hidden, trained(in.weight)});
  require_gradients_match(f, {trained(in.hidden), in.weight});
}

TEST_CASE("masked_cross_entropy: float and bfloat16 agree with double", "[kernels]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    INFO("dtype " << at::toString(dtype));
    const Inputs in = random_inputs(900, 32, 333, dtype);
    const std::vector<at::Tensor> low = {trained(in.hidden), trained(in.weight)};
    const std::vector<at::Tensor> high = {trained(in.hidden.to(at::kDouble)), trained(in.weight.to(at::kDouble))};
    const double scale = 1.0 / 600;
    const at::Tensor loss = masked_cross_entropy(low[0], low[1], in.labels, scale);
    const at::Tensor expected = masked_cross_entropy(high[0], high[1], in.labels, scale);
    REQUIRE(loss.scalar_type() == at::kFloat);
    const double tolerance = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
    require_close(loss, expected, kFloatTolerance, tolerance);
    const auto grads = torch::autograd::grad({loss}, low), expected_grads = torch::autograd::grad({expected}, high);
    for (std::size_t i = 0; i < low.size(); ++i) {
      REQUIRE(grads[i].scalar_type() == dtype);
      // bfloat16 logits near 20 have errors near 0.05, hence as much, relatively, in each probability: so the
      // absolute part is in units of the largest gradient.
      const double unit = dtype == at::kFloat ? 1 : 8 * expected_grads[i].abs().max().item<double>();
      require_close(grads[i], expected_grads[i], tolerance * unit, tolerance);
    }
  }
}

TEST_CASE("smoothed_cross_entropy: the terms and their gradients equal the definition", "[kernels]") {
  for (const std::int64_t num_tokens : {1, 100, 1700}) {
    for (const double eps : {0.0, 0.1, 0.5, 1.0}) {
      INFO(num_tokens << " tokens, eps " << eps);
      const Inputs in = random_inputs(num_tokens, 8, 50, at::kDouble);
      const std::vector<at::Tensor> ours = {trained(in.hidden), trained(in.weight)},
                                    theirs = {trained(in.hidden), trained(in.weight)};
      const auto terms = smoothed_cross_entropy(ours[0], ours[1], in.labels, 0.125, eps);
      const Terms expected = expected_terms(theirs[0], theirs[1], in.labels, 0.125);
      const at::Tensor objective = expected.nll * (1 - eps) + expected.uniform * eps;
      REQUIRE(terms.nll == Approx(expected.nll.item<double>()).epsilon(kDoubleTolerance));
      if (eps > 0) REQUIRE(terms.uniform == Approx(expected.uniform.item<double>()).epsilon(kDoubleTolerance));
      require_close(terms.objective, objective, kDoubleTolerance, kDoubleTolerance);
      // LibTorch's own definition of label smoothing.
      require_close(
          terms.objective,
          at::cross_entropy_loss(at::linear(in.hidden, in.weight), in.labels, {}, at::Reduction::Sum, kIgnored, eps) *
              0.125,
          kDoubleTolerance, kDoubleTolerance);
      const auto grads = torch::autograd::grad({terms.objective * 3}, ours),
                 expected_grads = torch::autograd::grad({objective * 3}, theirs);
      for (std::size_t i = 0; i < ours.size(); ++i)
        require_close(grads[i], expected_grads[i], kDoubleTolerance, kDoubleTolerance);
    }
  }
}

TEST_CASE("smoothed_cross_entropy: float and bfloat16 agree with double", "[kernels]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    INFO("dtype " << at::toString(dtype));
    const Inputs in = random_inputs(900, 32, 333, dtype);
    const std::vector<at::Tensor> low = {trained(in.hidden), trained(in.weight)};
    const std::vector<at::Tensor> high = {trained(in.hidden.to(at::kDouble)), trained(in.weight.to(at::kDouble))};
    const auto terms = smoothed_cross_entropy(low[0], low[1], in.labels, 1.0 / 600, 0.2);
    const auto expected = smoothed_cross_entropy(high[0], high[1], in.labels, 1.0 / 600, 0.2);
    const double tolerance = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
    REQUIRE(terms.nll == Approx(expected.nll).epsilon(tolerance));
    REQUIRE(terms.uniform == Approx(expected.uniform).epsilon(tolerance));
    const auto grads = torch::autograd::grad({terms.objective}, low),
               expected_grads = torch::autograd::grad({expected.objective}, high);
    for (std::size_t i = 0; i < low.size(); ++i) {
      REQUIRE(grads[i].scalar_type() == dtype);
      // As without smoothing: the absolute part is in units of the largest gradient.
      const double unit = dtype == at::kFloat ? 1 : 8 * expected_grads[i].abs().max().item<double>();
      require_close(grads[i], expected_grads[i], tolerance * unit, tolerance);
    }
  }
}

TEST_CASE("smoothed_cross_entropy: without smoothing it is masked_cross_entropy to the bit", "[kernels]") {
  const Inputs in = random_inputs(700, 8, 50, at::kFloat);
  const std::vector<at::Tensor> a = {trained(in.hidden), trained(in.weight)},
                                b = {trained(in.hidden), trained(in.weight)};
  const auto terms = smoothed_cross_entropy(a[0], a[1], in.labels, 0.5, 0.0);
  const at::Tensor loss = masked_cross_entropy(b[0], b[1], in.labels, 0.5);
  require_equal(terms.objective, loss);
  REQUIRE(terms.uniform == 0.0);
  const auto grads = torch::autograd::grad({terms.objective}, a), expected = torch::autograd::grad({loss}, b);
  for (std::size_t i = 0; i < a.size(); ++i) require_equal(grads[i], expected[i]);
}

TEST_CASE("smoothed_cross_entropy: evaluation gives the same terms", "[kernels]") {
  const Inputs in = random_inputs(700, 8, 50, at::kFloat);
  const auto terms = smoothed_cross_entropy(trained(in.hidden), in.weight, in.labels, 0.5, 0.1);
  const auto evaluated = smoothed_cross_entropy(in.hidden, in.weight, in.labels, 0.5, 0.1);
  REQUIRE_FALSE(evaluated.objective.requires_grad());
  REQUIRE(evaluated.nll == terms.nll);
  REQUIRE(evaluated.uniform == terms.uniform);
  REQUIRE_THROWS_AS(smoothed_cross_entropy(in.hidden, in.weight, in.labels, 0.5, 1.5), InternalError);
}

TEST_CASE("masked_cross_entropy: without a supervised token loss and gradients are zero", "[kernels]") {
  const at::Tensor hidden = trained(at::ones({4, 3})), weight = trained(at::ones({5, 3}));
  const at::Tensor loss = masked_cross_entropy(hidden, weight, at::full({4}, kIgnored, at::kLong), 1);
  REQUIRE(loss.item<double>() == 0);
  loss.backward();
  require_equal(hidden.grad(), at::zeros({4, 3}));
  require_equal(weight.grad(), at::zeros({5, 3}));
}

TEST_CASE("masked_cross_entropy: an ignored token gets no gradient", "[kernels]") {
  const at::Tensor hidden = trained(at::ones({3, 2})), weight = at::eye(2);
  masked_cross_entropy(hidden, weight, at::tensor({std::int64_t{1}, kIgnored, std::int64_t{0}}), 1).backward();
  REQUIRE(hidden.grad()[0].abs().sum().item<double>() > 0);
  require_equal(hidden.grad()[1], at::zeros({2}));
}

TEST_CASE("masked_cross_entropy: evaluation records nothing and gives the same loss", "[kernels]") {
  const Inputs in = random_inputs(700, 8, 50, at::kFloat);
  const at::Tensor trained_loss = masked_cross_entropy(trained(in.hidden), in.weight, in.labels, 0.5);
  const at::NoGradGuard no_grad;
  const at::Tensor loss = masked_cross_entropy(trained(in.hidden), in.weight, in.labels, 0.5);
  REQUIRE_FALSE(loss.requires_grad());
  require_equal(loss, trained_loss);
}

TEST_CASE("masked_cross_entropy: huge logits give a finite loss", "[kernels]") {
  const at::Tensor loss = masked_cross_entropy(at::full({1, 1}, 1e4F), at::tensor({1.0F, -1.0F}).view({2, 1}),
                                               at::tensor({std::int64_t{1}}), 1);
  require_close(loss, at::scalar_tensor(2e4), kFloatTolerance, kFloatTolerance);
}

TEST_CASE("masked_cross_entropy: a label outside the vocabulary is an internal error", "[kernels]") {
  const at::Tensor hidden = at::ones({1, 2}), weight = at::ones({3, 2});
  for (const std::int64_t label : {3, -1, -99}) {
    REQUIRE_THROWS_AS(masked_cross_entropy(hidden, weight, at::tensor({label}), 1), InternalError);
  }
  REQUIRE_THROWS_AS(masked_cross_entropy(hidden, at::ones({3, 2}, at::kBFloat16), at::zeros({1}, at::kLong), 1),
                    InternalError);
}
