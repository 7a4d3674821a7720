#include "finetune/schedule.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <string>

#include "base/json.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

const std::map<std::string, ScheduleKind> kKinds = {{"constant", ScheduleKind::kConstant},
                                                    {"linear", ScheduleKind::kLinear},
                                                    {"cosine", ScheduleKind::kCosine},
                                                    {"wsd", ScheduleKind::kWsd},
                                                    {"inverse_sqrt", ScheduleKind::kInverseSqrt}};
const std::map<std::string, WsdDecay> kDecays = {
    {"cosine", WsdDecay::kCosine}, {"linear", WsdDecay::kLinear}, {"sqrt", WsdDecay::kSqrt}};

double cosine(double q) { return (1 + std::cos(std::numbers::pi * q)) / 2; }
double with_floor(double left, double floor) { return floor + (1 - floor) * left; }

// `equation(step)` from the end of the warm-up on, and the line up to there, at every step.
template <class Equation>
void require_equation(const ScheduleConfig& config, std::int64_t num_steps, Equation equation) {
  for (std::int64_t step = 0; step <= num_steps; ++step) {
    INFO("step " << step << " of " << num_steps);
    const double expected = step < config.warmup_steps
                                ? static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps)
                                : equation(static_cast<double>(step));
    REQUIRE(std::abs(lr_factor(config, step, num_steps) - expected) < 1e-12);
  }
}

}  // namespace

TEST_CASE("schedule: warm-up rises linearly to one", "[finetune]") {
  for (const auto& [name, kind] : kKinds) {
    INFO(name);
    const ScheduleConfig config{.kind = kind, .warmup_steps = 4};
    REQUIRE(lr_factor(config, 0, 10) == Approx(0.25));
    REQUIRE(lr_factor(config, 3, 10) == Approx(1.0));
    REQUIRE(lr_factor(config, 4, 10) == Approx(1.0));
  }
}

TEST_CASE("schedule: every kind is its equation at every step", "[finetune]") {
  constexpr double kSteps = 500, kWarmup = 30, kFloor = 0.1;
  constexpr std::int64_t kNumSteps = 500;
  ScheduleConfig config{.kind = ScheduleKind::kConstant, .warmup_steps = 30, .min_lr_ratio = kFloor};
  const auto progress = [](double step) { return (step - kWarmup) / (kSteps - kWarmup); };

  require_equation(config, kNumSteps, [](double) { return 1.0; });
  config.kind = ScheduleKind::kLinear;
  require_equation(config, kNumSteps, [&](double step) { return with_floor(1 - progress(step), kFloor); });
  config.kind = ScheduleKind::kCosine;
  require_equation(config, kNumSteps, [&](double step) { return with_floor(cosine(progress(step)), kFloor); });
  config.kind = ScheduleKind::kInverseSqrt;
  require_equation(config, kNumSteps, [](double step) { return std::sqrt(kWarmup / step); });
  config.min_lr_ratio = 0.5;  // reached at step 120
  require_equation(config, kNumSteps, [](double step) { return step < 120 ? std::sqrt(kWarmup / step) : 0.5; });
  config = {.kind = ScheduleKind::kInverseSqrt};
  require_equation(config, kNumSteps, [](double step) { return std::sqrt(10'000 / (step + 10'000)); });
}

TEST_CASE("schedule: wsd stays at one and decays by its shape over its last part", "[finetune]") {
  ScheduleConfig config{
      .kind = ScheduleKind::kWsd, .warmup_steps = 30, .min_lr_ratio = 0.1, .decay_fraction = 0.25, .decay = {}};
  const auto require_shape = [&](WsdDecay decay, auto left) {
    config.decay = decay;
    require_equation(config, 400,
                     [&](double step) { return step < 300 ? 1.0 : with_floor(left((step - 300) / 100), 0.1); });
  };
  require_shape(WsdDecay::kCosine, cosine);
  require_shape(WsdDecay::kLinear, [](double q) { return 1 - q; });
  require_shape(WsdDecay::kSqrt, [](double q) { return 1 - std::sqrt(q); });

  // A decay longer than what the warm-up leaves begins where the warm-up ends.
  config = {.kind = ScheduleKind::kWsd, .warmup_steps = 50, .decay_fraction = 1.0, .decay = WsdDecay::kLinear};
  require_equation(config, 100, [](double step) { return 1 - (step - 50) / 50; });
  // No decay at all.
  config = {.kind = ScheduleKind::kWsd, .decay_fraction = 0.0};
  for (std::int64_t step = 0; step < 100; ++step) REQUIRE(lr_factor(config, step, 100) == 1.0);
}

TEST_CASE("schedule: factors never leave what lies between the floor and one, warm-up or not", "[finetune]") {
  for (const auto& [name, kind] : kKinds) {
    for (const std::int64_t warmup : {0, 1, 5, 10}) {
      const ScheduleConfig config{.kind = kind, .warmup_steps = warmup, .min_lr_ratio = 0.05};
      for (std::int64_t step = 0; step < 12; ++step) {
        INFO(name << " warm-up " << warmup << " step " << step);
        const double factor = lr_factor(config, step, 10);
        REQUIRE(factor >= 0.05);
        REQUIRE(factor <= 1.0);
      }
    }
  }
}

TEST_CASE("schedule: the same numbers as transformers' schedules", "[finetune]") {
  const Json entries = read_json_file(golden("schedules.json"));
  REQUIRE(entries.size() == 9);
  for (const Json& entry : entries) {
    const ScheduleConfig config{.kind = kKinds.at(entry["kind"].get<std::string>()),
                                .warmup_steps = entry["warmup_steps"].get<std::int64_t>(),
                                .min_lr_ratio = entry["min_lr_ratio"].get<double>(),
                                .decay_fraction = entry["decay_fraction"].get<double>(),
                                .decay = kDecays.at(entry["decay"].get<std::string>())};
    for (std::size_t i = 0; i < entry["steps"].size(); ++i) {
      const auto step = entry["steps"][i].get<std::int64_t>();
      INFO(entry["kind"] << " " << entry["decay"] << " step " << step);
      const double factor = lr_factor(config, step, entry["num_steps"].get<std::int64_t>());
      REQUIRE(std::abs(factor - entry["factors"][i].get<double>()) < 1e-12);
    }
  }
}
