#pragma once

#include <ATen/core/Generator.h>

#include "checkpoint/upcycle.h"

namespace dagmoe {

/// UpcycleConfig with its defaults filled in.
struct UpcycleCounts {
  std::int64_t num_experts = 8, num_experts_per_tok = 4, num_shards = 1;
  double router_std = 0.02;  ///< the model's initializer_range; copy_noise and drop have their authors' own
};

/// Fills router, routed experts and shared expert of `layer` from a dense layer. Letters: E experts, F width of the
/// dense network, D hidden.
void make_experts(const UpcycleConfig& config, const UpcycleCounts& counts, const DecoderLayer& dense,
                  at::Generator& generator, DecoderLayer& layer);

}  // namespace dagmoe
