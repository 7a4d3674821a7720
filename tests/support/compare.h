// Judges of tensors for every test program: whole tensors, never a mean; gradients against central differences in
// double.
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.h"

namespace dagmoe::testing {

/// The tolerances of the project, by what was computed: double, float, or bfloat16 against float.
inline constexpr double kDoubleTolerance = 1e-10, kFloatTolerance = 1e-5, kBf16Tolerance = 1.0 / 128;

/// The place of flat index `flat` in a tensor of this shape: "[2, 0, 5]".
inline std::string index_text(at::IntArrayRef shape, std::int64_t flat) {
  std::string text;
  for (std::int64_t dim = static_cast<std::int64_t>(shape.size()) - 1; dim >= 0; --dim) {
    text = std::to_string(flat % shape[dim]) + (text.empty() ? "" : ", ") + text;
    flat /= shape[dim];
  }
  return "[" + text + "]";
}

/// "" when |actual - expected| <= atol + rtol |expected| everywhere (NaN equals NaN, infinity the same infinity);
/// otherwise a sentence with the worst index and both values there.
inline std::string difference_text(const at::Tensor& actual, const at::Tensor& expected, double atol, double rtol) {
  std::ostringstream text;
  text.precision(17);
  if (actual.sizes() != expected.sizes()) {
    text << "shapes differ: found " << actual.sizes() << ", expected " << expected.sizes();
    return text.str();
  }
  const at::Tensor found = actual.detach().to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor wanted = expected.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* a = found.const_data_ptr<double>();
  const double* b = wanted.const_data_ptr<double>();
  double worst = 0;
  std::int64_t worst_index = -1, num_wrong = 0;
  for (std::int64_t i = 0; i < found.numel(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    // Infinite where only one side is finite, so that it is always the worst.
    double excess = std::abs(a[i] - b[i]) / (atol + rtol * std::abs(b[i]));
    if (std::isnan(excess) || !std::isfinite(b[i])) excess = INFINITY;
    if (excess <= 1) continue;
    ++num_wrong;
    if (excess > worst) {
      worst = excess;
      worst_index = i;
    }
  }
  if (num_wrong == 0) return "";
  text << num_wrong << " of " << found.numel() << " values differ; worst at " << index_text(found.sizes(), worst_index)
       << ": found " << a[worst_index] << ", expected " << b[worst_index] << ", " << worst << " times the tolerance ("
       << atol << " + " << rtol << " relative)";
  return text.str();
}

/// Fails the test, printing the worst index and both values, unless every |actual - expected| <= atol + rtol
/// |expected|.
inline void require_close(const at::Tensor& actual, const at::Tensor& expected, double atol, double rtol) {
  const std::string difference = difference_text(actual, expected, atol, rtol);
  INFO(difference);
  REQUIRE(difference.empty());
}

/// The same bits, apart from the sign of zero.
inline void require_equal(const at::Tensor& actual, const at::Tensor& expected) {
  require_close(actual, expected, 0, 0);
}

/// Autograd's gradients of sum(f(inputs) * r), r fixed random numbers, against central differences, for every element
/// of every input that requires grad. Inputs are double (others, such as indices, just may not require grad).
inline void require_gradients_match(std::function<at::Tensor(const std::vector<at::Tensor>&)> f,
                                    std::vector<at::Tensor> inputs, double eps = 1e-6, double tol = 1e-6) {
  for (at::Tensor& input : inputs) {
    const bool requires_grad = input.requires_grad();
    if (requires_grad) REQUIRE(input.scalar_type() == at::kDouble);
    input = input.detach().clone().set_requires_grad(requires_grad);
  }
  const at::Tensor output = f(inputs);
  auto generator = at::make_generator<at::CPUGeneratorImpl>(20240607);
  const at::Tensor factors = at::randn(output.sizes(), generator, output.options().requires_grad(false));
  std::vector<at::Tensor> wanted;
  for (const at::Tensor& input : inputs) {
    if (input.requires_grad()) wanted.push_back(input);
  }
  REQUIRE_FALSE(wanted.empty());
  const auto gradients = torch::autograd::grad({(output * factors).sum()}, wanted, {}, std::nullopt, false, true);

  const at::NoGradGuard no_grad;
  for (std::size_t which = 0; which < wanted.size(); ++which) {
    const at::Tensor& input = wanted[which];
    at::Tensor numeric = at::zeros_like(input);
    const at::Tensor flat_input = input.detach().view(-1), flat_numeric = numeric.view(-1);
    double* x = flat_input.data_ptr<double>();
    for (std::int64_t i = 0; i < flat_input.numel(); ++i) {
      const double x0 = x[i];
      x[i] = x0 + eps;
      const double above = (f(inputs) * factors).sum().item<double>();
      x[i] = x0 - eps;
      const double below = (f(inputs) * factors).sum().item<double>();
      x[i] = x0;
      flat_numeric.data_ptr<double>()[i] = (above - below) / (2 * eps);
    }
    const at::Tensor analytic = gradients[which].defined() ? gradients[which] : at::zeros_like(input);
    INFO("gradient of differentiable input " << which);
    require_close(analytic, numeric, tol, tol);
  }
}

}  // namespace dagmoe::testing
