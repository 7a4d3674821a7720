// Plain double arithmetic for the references of the adapters that are mixtures: vectors, matrices times vectors, and
// random parameters.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "peft/mixture_support.h"

namespace dagmoe::testing {

using Vector = std::vector<double>;

inline Vector vector_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

inline Vector times(const at::Tensor& matrix, const Vector& vector) {
  const Vector values = vector_of(matrix);
  Vector result(static_cast<std::size_t>(matrix.size(0)), 0.0);
  for (std::size_t row = 0; row < result.size(); ++row) {
    for (std::size_t column = 0; column < vector.size(); ++column) {
      result[row] += values[row * vector.size() + column] * vector[column];
    }
  }
  return result;
}

inline Vector plus(Vector a, const Vector& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b.at(i);
  return a;
}

inline double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

/// The k largest, largest first; of equal ones the lower index first.
inline std::vector<std::int64_t> largest(const Vector& scores, std::int64_t k) {
  std::vector<std::int64_t> chosen;
  for (std::int64_t n = 0; n < k; ++n) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(scores.size()); ++i) {
      if (std::find(chosen.begin(), chosen.end(), i) != chosen.end()) continue;
      if (best < 0 || scores[static_cast<std::size_t>(i)] > scores[static_cast<std::size_t>(best)]) best = i;
    }
    chosen.push_back(best);
  }
  return chosen;
}

inline at::Tensor random_normal(const std::vector<std::int64_t>& shape, std::uint64_t seed, double std = 1.0) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::empty(shape, at::kDouble).normal_(0.0, std, generator);
}

/// Normal with 1/sqrt(last size) as deviation, so that outputs are about as large as inputs.
inline std::vector<at::Tensor> random_parameters(const std::vector<NamedShape>& shapes, std::uint64_t seed) {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, shape] : shapes) {
    const double fan_in = static_cast<double>(std::max<std::int64_t>(shape.back(), 1));
    tensors.push_back(random_normal(shape, seed++, 1.0 / std::sqrt(fan_in)));
  }
  return tensors;
}

inline std::vector<at::Tensor> cast(const std::vector<at::Tensor>& tensors, at::ScalarType dtype) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.to(dtype));
  return result;
}

/// Float tensors full of NaN, for an initialization that must set every value.
inline std::vector<at::Tensor> unset_parameters(const std::vector<NamedShape>& shapes) {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, shape] : shapes) tensors.push_back(at::full(shape, NAN, at::kFloat));
  return tensors;
}

}  // namespace dagmoe::testing
