#include "cli/gemm_peak.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

namespace dagmoe {

double measure_gemm_peak(at::ScalarType dtype) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  constexpr std::int64_t kSize = 1536;
  constexpr double kFlops = 2.0 * kSize * kSize * kSize;
  const c10::AutoGradMode no_grad(false);
  const at::Tensor a = at::ones({kSize, kSize}, dtype), b = at::ones({kSize, kSize}, dtype);
  at::linear(a, b);  // the first product builds its kernel
  double best = 0.0;
  const auto start = Clock::now();
  do {
    const auto began = Clock::now();
    at::linear(a, b);
    best = std::max(best, kFlops / seconds_since(began));
  } while (seconds_since(start) < 0.5);
  return best;
}

}  // namespace dagmoe
