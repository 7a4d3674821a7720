#include "model/rope.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dagmoe {
namespace {

// Long waves are stretched by the factor, short ones stay, those between are mixed.
at::Tensor llama3_frequencies(const RopeConfig& rope, const at::Tensor& inverse_d2) {
  const auto old_context = static_cast<double>(rope.original_max_position_embeddings);
  const at::Tensor wavelength = 2.0 * std::numbers::pi / inverse_d2;
  const at::Tensor is_long = wavelength > old_context / rope.low_freq_factor,
                   is_short = wavelength < old_context / rope.high_freq_factor;
  const at::Tensor stretched = at::where(is_long, inverse_d2 / rope.factor, inverse_d2);
  const at::Tensor s =
      (old_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor mixed = (1 - s) * stretched / rope.factor + s * stretched;
  return at::where(at::logical_or(is_long, is_short), stretched, mixed);
}

// arXiv:2309.00071: pairs that turn often within the old context stay, those that turn rarely are stretched.
at::Tensor yarn_frequencies(const RopeConfig& rope, std::int64_t d, const at::Tensor& inverse_d2) {
  const auto dimension_of = [&](double rotations) {
    const double context = static_cast<double>(rope.original_max_position_embeddings);
    return static_cast<double>(d) * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(d - 1));
  if (low == high) high += 0.001;  // no division by zero
  const at::Tensor ramp = ((at::arange(d / 2, at::kFloat) - low) / (high - low)).clamp(0.0, 1.0);
  const at::Tensor keep = 1 - ramp;
  return inverse_d2 / rope.factor * (1 - keep) + inverse_d2 * keep;
}

double yarn_attention_factor(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale && rope.mscale_all_dim) {
    return yarn_mscale(rope.factor, *rope.mscale) / yarn_mscale(rope.factor, *rope.mscale_all_dim);
  }
  return yarn_mscale(rope.factor, 1.0);
}

}  // namespace

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

RopeFrequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim) {
  const at::Tensor exponent = at::arange(0, head_dim, 2, at::kFloat) / static_cast<double>(head_dim);
  const at::Tensor inverse_d2 = 1.0 / at::pow(rope.theta, exponent);
  switch (rope.kind) {
    case RopeKind::kDefault:
      return {inverse_d2};
    case RopeKind::kLinear:
      return {inverse_d2 / rope.factor};
    case RopeKind::kLlama3:
      return {llama3_frequencies(rope, inverse_d2)};
    case RopeKind::kYarn:
      return {yarn_frequencies(rope, head_dim, inverse_d2), yarn_attention_factor(rope)};
  }
  return {inverse_d2};
}

RopeTables rope_tables(const ModelConfig& config, const at::Tensor& position_ids_T, at::ScalarType dtype) {
  const auto [inverse_d2, factor] = rope_frequencies(config.rope, config.head_dim);
  const at::Tensor angle_Td2 =
      position_ids_T.to(at::kFloat).unsqueeze(1) * inverse_d2.to(position_ids_T.device()).unsqueeze(0);
  RopeTables tables = {angle_Td2.cos().to(dtype), angle_Td2.sin().to(dtype)};
  if (factor != 1.0) tables = {tables.cos_Td2 * factor, tables.sin_Td2 * factor};
  return tables;
}

}  // namespace dagmoe
