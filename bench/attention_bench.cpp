// Times training attention, forward and backward, beside LibTorch's CPU kernel called for one segment after the other.
//   attention_bench [all|packed|long]
// By processor time, so OMP_NUM_THREADS=1 for figures that compare; thread time is what all threads take together.
#include <ATen/ATen.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
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
constexpr std::int64_t kHeads = 9, kKvHeads = 3, kGroup = kHeads / kKvHeads, kHeadWidth = 64;

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

// One segment as LibTorch's kernel is fastest at these sizes: in float, and the key heads as the batch, [Hk, M, S, d].
struct SegmentViews {
  SegmentViews(const at::Tensor& x_THd, std::int64_t begin, std::int64_t size) : rows(x_THd.narrow(0, begin, size)) {}
  at::Tensor queries() const {
    const auto size = rows.size(0);
    return rows.to(at::kFloat).view({size, kKvHeads, kGroup, kHeadWidth}).permute({1, 2, 0, 3});
  }
  at::Tensor keys() const {
    return rows.to(at::kFloat).unsqueeze(2).permute({1, 2, 0, 3}).expand({kKvHeads, kGroup, rows.size(0), kHeadWidth});
  }
  at::Tensor rows;
};
at::Tensor from_heads(const at::Tensor& x_kMSd, at::ScalarType dtype) {
  return x_kMSd.permute({2, 0, 1, 3}).reshape({x_kMSd.size(2), -1, kHeadWidth}).to(dtype);
}

// Forward, and with grad_out backward too, of LibTorch's kernel on one segment after the other.
void run_libtorch(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                  const std::vector<std::int64_t>& offsets, const at::Tensor& grad_out_THd) {
  const at::NoGradGuard no_grad;
  const at::ScalarType dtype = q_THd.scalar_type();
  std::vector<at::Tensor> outs, grads;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const auto part = [&](const at::Tensor& x) { return SegmentViews(x, offsets[i], offsets[i + 1] - offsets[i]); };
    const at::Tensor q = part(q_THd).queries(), k = part(k_THd).keys(), v = part(v_THd).keys();
    const auto [out, log_sum_exp] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true);
    outs.push_back(from_heads(out, dtype));
    if (!grad_out_THd.defined()) continue;
    const auto [grad_q, grad_k, grad_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        part(grad_out_THd).queries(), q, k, v, out, log_sum_exp, 0.0, true);
    grads.push_back(from_heads(grad_q, dtype));
    grads.push_back(from_heads(grad_k.sum(1, true), dtype));
    grads.push_back(from_heads(grad_v.sum(1, true), dtype));
  }
}

void time_case(const std::string& name, const std::vector<std::int64_t>& offsets, at::ScalarType dtype) {
  const auto random = [&](std::int64_t heads) { return at::randn({offsets.back(), heads, kHeadWidth}).to(dtype); };
  const at::Tensor q = random(kHeads).requires_grad_(), k = random(kKvHeads).requires_grad_(),
                   v = random(kKvHeads).requires_grad_(), factors = random(kHeads);
  const auto line = [&](const char* kernel, const std::function<void()>& forward, const std::function<void()>& both) {
    const auto [forward_least, forward_median] = measure(forward);
    const auto [both_least, both_median] = measure(both);
    std::printf("%-22s %-5s %-9s %9.2f %9.2f %9.2f %9.2f\n", name.c_str(), dtype == at::kFloat ? "float" : "bf16",
                kernel, forward_least, forward_median, both_least, both_median);
    std::fflush(stdout);
  };
  line(
      "LibTorch", [&] { run_libtorch(q, k, v, offsets, {}); }, [&] { run_libtorch(q, k, v, offsets, factors); });
  line(
      "dagmoe",
      [&] {
        const at::NoGradGuard no_grad;
        segment_attention(q, k, v, offsets);
      },
      [&] {
        torch::autograd::grad({segment_attention(q, k, v, offsets)}, {q, k, v}, {factors});
      });
}

}  // namespace
}  // namespace dagmoe

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  std::printf("threads %d, best table %s\n", at::get_num_threads(), dagmoe::isa_name(dagmoe::best_isa()));
  std::printf("%-22s %-5s %-9s %9s %9s %9s %9s\n", "segments", "type", "kernel", "fwd min", "median", "both min",
              "median ms");
  std::vector<std::int64_t> packed = {0};
  for (std::int64_t i = 0; i < 30; ++i) packed.push_back(packed.back() + 60 + 67 * i % 141);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    if (what != "long") dagmoe::time_case("30 of 60 to 200", packed, dtype);
    if (what == "packed") continue;
    for (const std::int64_t size : {512, 2048, 4096})
      dagmoe::time_case("1 of " + std::to_string(size), {0, size}, dtype);
  }
  return 0;
}
