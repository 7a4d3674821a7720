#pragma once

#include <cstdint>

namespace dagmoe {

enum class ScheduleKind { kConstant, kLinear, kCosine, kWsd, kInverseSqrt };
/// What is left of the peak at progress q through wsd's decay, before the floor: (1 + cos(pi q)) / 2, 1 - q or
/// 1 - sqrt(q) (Hägele et al., arXiv 2405.18392).
enum class WsdDecay { kCosine, kLinear, kSqrt };

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kConstant;
  std::int64_t warmup_steps = 0;
  double min_lr_ratio = 0.0;           ///< of the peak, the floor of the decay; not for constant
  double decay_fraction = 0.2;         ///< of all steps, at the end; wsd only
  WsdDecay decay = WsdDecay::kCosine;  ///< wsd only
};

/// Multiplier on the peak learning rate at 0-based `step` of `num_steps`. Warm-up is linear, (step + 1) / warmup_steps;
/// linear and cosine decay from its end to the last step; wsd stays at 1 and decays over the last decay_fraction.
/// inverse_sqrt is sqrt(t / (step - warmup_steps + t)) with t = warmup_steps, or 10,000 without warm-up, as
/// transformers' get_inverse_sqrt_schedule; it knows no last step, and min_lr_ratio is the least it falls to.
double lr_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t num_steps);

}  // namespace dagmoe
