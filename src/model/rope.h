#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"

namespace dagmoe {

/// Angles of T positions: cos and sin of each of the d / 2 pairs of a head.
struct RopeTables {
  at::Tensor cos_Td2, sin_Td2;
};

/// What a position is multiplied by for each pair, and what cos and sin are multiplied by (1 but for yarn). Float, as
/// transformers 5.23.0 computes them (contracts.md 1.3).
struct RopeFrequencies {
  at::Tensor inverse_d2;
  double attention_factor = 1.0;
};
RopeFrequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim);

RopeTables rope_tables(const ModelConfig& config, const at::Tensor& position_ids_T, at::ScalarType dtype);

/// yarn's correction for a context stretched by `factor`: 0.1 mscale ln(factor) + 1.
double yarn_mscale(double factor, double mscale);

}  // namespace dagmoe
