#pragma once

#include <cstdint>

namespace dagmoe {

enum class ScheduleKind { kConstant, kLinear, kCosine, kWsd };

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kConstant;
  std::int64_t warmup_steps = 0;
  double min_lr_ratio = 0.0;    ///< of the peak, where the decay ends; not for constant
  double decay_fraction = 0.2;  ///< of all steps, at the end; wsd only
};

/// Multiplier on the peak learning rate at 0-based `step` of `num_steps`. Warm-up is linear, (step + 1) / warmup_steps;
/// linear and cosine decay from its end to the last step; wsd stays at 1 and decays by half a cosine over the last
/// decay_fraction.
double lr_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t num_steps);

}  // namespace dagmoe
