#include "finetune/schedule.h"

#include "tests/support/catch.h"

using namespace dagmoe;

TEST_CASE("schedule: warm-up rises linearly to one", "[finetune]") {
  const ScheduleConfig config{.kind = ScheduleKind::kConstant, .warmup_steps = 4};
  REQUIRE(lr_factor(config, 0, 10) == Approx(0.25));
  REQUIRE(lr_factor(config, 3, 10) == Approx(1.0));
  REQUIRE(lr_factor(config, 9, 10) == Approx(1.0));
}

TEST_CASE("schedule: linear and cosine fall from one to the floor", "[finetune]") {
  for (const auto kind : {ScheduleKind::kLinear, ScheduleKind::kCosine}) {
    const ScheduleConfig config{.kind = kind, .warmup_steps = 2, .min_lr_ratio = 0.1};
    REQUIRE(lr_factor(config, 2, 12) == Approx(1.0));
    REQUIRE(lr_factor(config, 7, 12) == Approx(0.55));
    REQUIRE(lr_factor(config, 12, 12) == Approx(0.1));
  }
}

TEST_CASE("schedule: wsd stays at one and decays over its last part", "[finetune]") {
  const ScheduleConfig config{
      .kind = ScheduleKind::kWsd, .warmup_steps = 1, .min_lr_ratio = 0.0, .decay_fraction = 0.2};
  REQUIRE(lr_factor(config, 7, 10) == Approx(1.0));
  REQUIRE(lr_factor(config, 8, 10) == Approx(1.0));
  REQUIRE(lr_factor(config, 9, 10) == Approx(0.5));
}
