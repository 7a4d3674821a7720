#include "finetune/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dagmoe {
namespace {

double half_cosine(double progress) { return 0.5 * (1.0 + std::cos(std::numbers::pi * progress)); }

double wsd_left(WsdDecay decay, double progress) {
  switch (decay) {
    case WsdDecay::kCosine:
      return half_cosine(progress);
    case WsdDecay::kLinear:
      return 1.0 - progress;
    case WsdDecay::kSqrt:
      return 1.0 - std::sqrt(progress);
  }
  return 1.0;
}

double inverse_sqrt(std::int64_t step, std::int64_t warmup_steps) {
  const double timescale = warmup_steps > 0 ? static_cast<double>(warmup_steps) : 10'000.0;
  return 1.0 / std::sqrt((static_cast<double>(step - warmup_steps) + timescale) / timescale);
}

}  // namespace

double lr_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t num_steps) {
  const double warmup = static_cast<double>(config.warmup_steps), steps = static_cast<double>(num_steps);
  if (step < config.warmup_steps) return static_cast<double>(step + 1) / warmup;
  if (config.kind == ScheduleKind::kConstant) return 1.0;
  if (config.kind == ScheduleKind::kInverseSqrt)
    return std::max(config.min_lr_ratio, inverse_sqrt(step, config.warmup_steps));

  const bool is_wsd = config.kind == ScheduleKind::kWsd;
  const double decay_begin = is_wsd ? std::max(warmup, steps * (1.0 - config.decay_fraction)) : warmup;
  const double decay_steps = std::max(1.0, steps - decay_begin);
  const double progress = std::clamp((static_cast<double>(step) - decay_begin) / decay_steps, 0.0, 1.0);
  const double left = is_wsd                                 ? wsd_left(config.decay, progress)
                      : config.kind == ScheduleKind::kLinear ? 1.0 - progress
                                                             : half_cosine(progress);
  return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * left;
}

}  // namespace dagmoe
