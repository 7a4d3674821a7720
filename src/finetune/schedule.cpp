#include "finetune/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dagmoe {
namespace {

// 1 at progress 0, 0 at progress 1, then raised to the floor.
double decayed(ScheduleKind kind, double progress, double floor) {
  const double left =
      kind == ScheduleKind::kLinear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return floor + (1.0 - floor) * left;
}

}  // namespace

double lr_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t num_steps) {
  if (step < config.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  if (config.kind == ScheduleKind::kConstant) return 1.0;
  const double steps = static_cast<double>(num_steps);
  const double decay_begin = config.kind == ScheduleKind::kWsd ? std::max(static_cast<double>(config.warmup_steps),
                                                                          steps * (1.0 - config.decay_fraction))
                                                               : static_cast<double>(config.warmup_steps);
  const double decay_steps = std::max(1.0, steps - decay_begin);
  const double progress = std::clamp((static_cast<double>(step) - decay_begin) / decay_steps, 0.0, 1.0);
  return decayed(config.kind, progress, config.min_lr_ratio);
}

}  // namespace dagmoe
