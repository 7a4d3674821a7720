// Times training attention, forward and backward, beside LibTorch's CPU kernel called for one segment after the other.
// By processor time, so OMP_NUM_THREADS=1 for figures that compare; thread time is what all threads take together.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

// SmolLM2-135M's layer.
constexpr std::int64_t kHeads = 9, kKvHeads = 3, kHeadWidth = 64;

double processor_seconds() {
  std::timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// The least and the median milliseconds of at least five runs after one that does not count.
std::pair<double, double> measure(const std::function<void()>& work) {
  work();
  std::vector<double> times;
  double total = 0;
  while (times.size() < 5 || (total < 0.5 && times.size() < 200)) {
    const double start = processor_seconds();
    work();
    times.push_back(processor_seconds() - start);
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times.front() * 1e3, times[times.size() / 2] * 1e3};
}

// Segments as float tensors, the key heads as the batch: as fast as LibTorch's kernel gets at these sizes.
at::Tensor libtorch_attention(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                              const std::vector<std::int64_t>& offsets) {
  std::vector<at::Tensor> parts;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::int64_t size = offsets[i + 1] - offsets[i], group = kHeads / kKvHeads;
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, offsets[i], size).to(at::kFloat); };
    const at::Tensor q_kMSd = rows(q_THd).view({size, kKvHeads, group, kHeadWidth}).permute({1, 2, 0, 3});
    const auto keys = [&](const at::Tensor& x) {
      return rows(x).unsqueeze(2).permute({1, 2, 0, 3}).expand({kKvHeads, group, size, kHeadWidth});
    };
    const at::Tensor out_kMSd =
        at::scaled_dot_product_attention(q_kMSd, keys(k_THd), keys(v_THd), {}, 0.0, /*is_causal=*/true);
    parts.push_back(out_kMSd.permute({2, 0, 1, 3}).reshape({size, kHeads, kHeadWidth}).to(q_THd.scalar_type()));
  }
  return at::cat(parts);
}

void time_case(const std::string& name, const std::vector<std::int64_t>& offsets, at::ScalarType dtype) {
  const auto random = [&](std::int64_t heads) { return at::randn({offsets.back(), heads, kHeadWidth}).to(dtype); };
  const at::Tensor q = random(kHeads).requires_grad_(), k = random(kKvHeads).requires_grad_(),
                   v = random(kKvHeads).requires_grad_(), factors = random(kHeads);
  const auto line = [&](const char* kernel, const std::function<at::Tensor()>& attention) {
    const auto [forward, forward_median] = measure([&] {
      const at::NoGradGuard no_grad;
      attention();
    });
    const auto [both, both_median] = measure([&] { torch::autograd::grad({attention()}, {q, k, v}, {factors}); });
    std::printf("%-22s %-5s %-9s %9.2f %9.2f %9.2f %9.2f\n", name.c_str(), dtype == at::kFloat ? "float" : "bf16",
                kernel, forward, forward_median, both, both_median);
    std::fflush(stdout);
  };
  line("LibTorch", [&] { return libtorch_attention(q, k, v, offsets); });
  line("dagmoe", [&] { return segment_attention(q, k, v, offsets); });
}

}  // namespace
}  // namespace dagmoe

int main() {
  std::printf("threads %d, best table %s\n", at::get_num_threads(), dagmoe::isa_name(dagmoe::best_isa()));
  std::printf("%-22s %-5s %-9s %9s %9s %9s %9s\n", "segments", "type", "kernel", "fwd min", "median", "both min",
              "median ms");
  std::vector<std::int64_t> packed = {0};
  for (std::int64_t i = 0; i < 30; ++i) packed.push_back(packed.back() + 60 + 67 * i % 141);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    dagmoe::time_case("30 of 60 to 200", packed, dtype);
    for (const std::int64_t size : {512, 2048, 4096})
      dagmoe::time_case("1 of " + std::to_string(size), {0, size}, dtype);
  }
  return 0;
}
