// Times the CUDA kernels beside the plain ATen expression of the same thing, on the same GPU, forward and backward, and
// beside the time that moving their bytes takes at the rate of a large copy. Prints one Markdown table.
//   cuda_bench [pairs|loss|routing|rest ...]      everything, or the named parts
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <cuda_runtime.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "kernels/cuda_kernels.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

using Work = std::function<void()>;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

const at::TensorOptions kOnGpu = at::TensorOptions(at::kCUDA);

at::Tensor random(at::IntArrayRef shape, at::ScalarType dtype) { return at::randn(shape, kOnGpu.dtype(dtype)); }
at::Tensor trained(const at::Tensor& tensor) { return tensor.detach().requires_grad_(true); }

/// Median milliseconds on the GPU. Before each run `prepare`, then a fill of 1 GB: nothing is left in the cache, and
/// the launches of `work` are queued before the GPU reaches them, so that the time is that of the kernels.
double measure(
    const Work& work, const Work& prepare = [] {}) {
  constexpr int kWarmUps = 3, kRepeats = 21;
  static const at::Tensor cache_filler = at::empty({std::int64_t{1} << 30}, kOnGpu.dtype(at::kByte));
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    prepare();
    for (int fill = 0; fill < 3; ++fill) cache_filler.fill_(i);
    check(cudaEventRecord(start));
    work();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end));
    if (i >= kWarmUps) times.push_back(milliseconds);
  }
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double bytes_per_second() {
  const at::Tensor from = random({std::int64_t{1} << 28}, at::kFloat), to = at::empty_like(from);
  return 2.0 * static_cast<double>(from.nbytes()) / (measure([&] { to.copy_(from); }) * 1e-3);
}

const char* name_of(at::ScalarType dtype) { return dtype == at::kFloat ? "fp32" : "bf16"; }

class Table {
 public:
  Table() : bytes_per_second_(bytes_per_second()) {
    std::printf("A copy of 1 GB moves %.2f TB/s, read and written bytes together.\n\n", bytes_per_second_ * 1e-12);
    std::printf(
        "| | ours, ms | ATen, ms | ATen / ours | bytes alone, ms | of that rate |\n|---|---|---|---|---|---|\n");
  }
  /// `num_bytes`: what must be read and written at least; 0 where products dominate.
  void line(const std::string& name, double ours, double aten, double num_bytes) const {
    std::printf("| %s | %.4f | %.4f | %.1f |", name.c_str(), ours, aten, aten / ours);
    const double floor = num_bytes / bytes_per_second_ * 1e3;
    if (num_bytes > 0) {
      std::printf(" %.4f | %.0f %% |\n", floor, 100 * floor / ours);
    } else {
      std::printf(" | |\n");
    }
    std::fflush(stdout);
  }

 private:
  double bytes_per_second_;
};

// f's output and the gradients of its inputs.
Work forward_backward(std::function<at::Tensor()> f, std::vector<at::Tensor> inputs, at::Tensor grad) {
  return [=] { torch::autograd::grad({f()}, inputs, {grad}); };
}

at::Tensor pairs_in_aten(const at::Tensor& abce_TK4G) {
  const auto parts = abce_TK4G.chunk(4, 2);
  const at::Tensor gate = at::silu(parts[0].unsqueeze(2) + parts[1].unsqueeze(1));
  return (gate * (parts[2].unsqueeze(2) + parts[3].unsqueeze(1))).sum(2);
}

void time_pairs(const Table& table) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const std::int64_t T : {4096, 16384}) {
      for (const std::int64_t K : {4, 8}) {
        for (const std::int64_t G : {64, 128}) {
          const at::Tensor abce = trained(random({T, K, 4 * G}, dtype)), grad = random({T, K, G}, dtype);
          const double ours = measure(forward_backward([&] { return dag_pairs(abce); }, {abce}, grad));
          const double aten = measure(forward_backward([&] { return pairs_in_aten(abce); }, {abce}, grad));
          const double forward = measure([&] { dag_pairs(abce.detach()); });
          std::array<char, 32> milliseconds;
          std::snprintf(milliseconds.data(), milliseconds.size(), "%.4f", forward);
          const std::string name = str("pairs, ", name_of(dtype), ", T ", T, ", K ", K, ", G ", G, " (forward alone ",
                                       milliseconds.data(), ")");
          // Forward: 4 in, 1 out. Backward: 4 and 1 in, 4 out.
          table.line(name, ours, aten, 14.0 * static_cast<double>(T * K * G * abce.element_size()));
        }
      }
    }
  }
}

template <class T>
void time_cross_entropy(const Table& table, at::ScalarType dtype) {
  for (const std::int64_t V : {49152, 128256}) {
    const std::int64_t N = 4096;
    const at::Tensor given = random({N, V}, dtype), target = at::randint(V, {N}, kOnGpu.dtype(at::kLong));
    const at::Tensor loss_N = at::empty({N}, kOnGpu.dtype(at::kDouble));
    const auto measure_ours = [&](std::int64_t num_rows) {
      const at::Tensor logits = at::empty_like(given.narrow(0, 0, num_rows));
      const CrossEntropy<T> args = {.N = num_rows,
                                    .V = V,
                                    .logits_NV = static_cast<T*>(logits.mutable_data_ptr()),
                                    .target_N = target.const_data_ptr<std::int64_t>(),
                                    .scale = 1.0 / static_cast<double>(num_rows),
                                    .loss_N = loss_N.mutable_data_ptr<double>()};
      return measure([&] { cuda::cross_entropy(args, /*stream=*/nullptr); },
                     [&] { logits.copy_(given.narrow(0, 0, num_rows)); });
    };
    const auto measure_aten = [&](std::int64_t num_rows) {
      const at::Tensor logits = trained(given.narrow(0, 0, num_rows)), targets = target.narrow(0, 0, num_rows);
      return measure([&] { torch::autograd::grad({at::cross_entropy_loss(logits, targets)}, {logits}); });
    };
    for (const std::int64_t num_rows : {kCrossEntropyRows, N}) {
      const std::string name =
          str("cross entropy of logits and its gradient, ", name_of(dtype), ", ", num_rows, " x ", V);
      table.line(name, measure_ours(num_rows), measure_aten(num_rows),
                 2.0 * static_cast<double>(num_rows * V) * sizeof(T));
    }
  }
}

void time_chunked_loss(const Table& table) {
  for (const std::int64_t V : {49152, 128256}) {
    const std::int64_t T = 4096, D = V == 49152 ? 576 : 2048;
    const at::Tensor hidden = trained(random({T, D}, at::kBFloat16) * 0.1),
                     head = trained(random({V, D}, at::kBFloat16));
    const at::Tensor labels = at::randint(V, {T}, kOnGpu.dtype(at::kLong));
    const double ours = measure([&] {
      torch::autograd::grad({masked_cross_entropy(hidden, head, labels, 1.0 / static_cast<double>(T))}, {hidden, head});
    });
    const double aten = measure([&] {
      torch::autograd::grad({at::cross_entropy_loss(at::linear(hidden, head), labels)}, {hidden, head});
    });
    table.line(str("head and loss in chunks of 2,048 rows, bf16, T 4096, D ", D, ", V ", V), ours, aten, 0);
  }
}

void time_losses(const Table& table) {
  time_cross_entropy<Bf16>(table, at::kBFloat16);
  time_cross_entropy<float>(table, at::kFloat);
  time_chunked_loss(table);
}

struct AtenRows {
  at::Tensor token_of_row_R, row_of_slot_TK, counts_E;
};
AtenRows route_in_aten(const at::Tensor& ids_TK, std::int64_t num_experts) {
  const at::Tensor order_R =
      std::get<1>(ids_TK.flatten().sort(std::optional<bool>(true), /*dim=*/0, /*descending=*/false));
  const at::Tensor row_of_slot_R = at::empty_like(order_R);
  row_of_slot_R.scatter_(0, order_R, at::arange(order_R.size(0), order_R.options()));
  return {order_R.floor_divide(ids_TK.size(1)), row_of_slot_R.view(ids_TK.sizes()),
          ids_TK.flatten().bincount({}, num_experts).cpu()};
}

void time_routing(const Table& table) {
  struct Shape {
    std::int64_t T, K, E, D;
  };
  for (const Shape& s : {Shape{4096, 4, 8, 576}, Shape{16384, 8, 64, 2048}, Shape{16384, 8, 256, 2048}}) {
    const at::Tensor ids = std::get<1>(random({s.T, s.E}, at::kFloat).topk(s.K, 1)).contiguous();
    const std::string sizes = str("T ", s.T, ", K ", s.K, " of ", s.E);
    const double slots = static_cast<double>(s.T * s.K);
    table.line(str("sort by expert, counts to the host, ", sizes), measure([&] { route_rows(ids, s.E); }),
               measure([&] { route_in_aten(ids, s.E); }), 3 * 8 * slots);
    const RoutedRows rows = route_rows(ids, s.E);
    const at::Tensor x = trained(random({s.T, s.D}, at::kBFloat16)),
                     y = trained(random({s.T * s.K, s.D}, at::kBFloat16));
    const at::Tensor grad_RD = random({s.T * s.K, s.D}, at::kBFloat16), grad_TKD = grad_RD.view({s.T, s.K, s.D});
    const at::Tensor slot_R = rows.row_of_slot_TK.flatten();
    const std::string what = str(", bf16, D ", s.D, ", ", sizes);
    const double row_bytes = 2.0 * static_cast<double>(s.D);
    // Both ways: the tokens' rows once (they stay in the cache), the routed rows once.
    table.line(str("rows to experts, and sums back", what),
               measure(forward_backward([&] { return gather_routed(x, rows); }, {x}, grad_RD)),
               measure(forward_backward([&] { return x.index_select(0, rows.token_of_row_R); }, {x}, grad_RD)),
               2 * row_bytes * (slots + static_cast<double>(s.T)));
    table.line(str("rows from experts, and back", what),
               measure(forward_backward([&] { return ungather_routed(y, rows); }, {y}, grad_TKD)),
               measure(forward_backward(
                   [&] {
                     return y.index_select(0, slot_R).view({s.T, s.K, s.D});
                   },
                   {y}, grad_TKD)),
               4 * row_bytes * slots);
  }
}

void time_norms_and_gates(const Table& table) {
  const std::int64_t T = 16384, D = 2048;
  const at::Tensor x = trained(random({T, D}, at::kBFloat16)), y = trained(random({T, D}, at::kBFloat16));
  const at::Tensor weight = trained(random({D}, at::kFloat)), same_type = trained(weight.detach().to(at::kBFloat16));
  const at::Tensor grad = random({T, D}, at::kBFloat16);
  const double one = 2.0 * static_cast<double>(T * D);
  table.line("RMSNorm, bf16, 16384 x 2048",
             measure(forward_backward([&] { return rms_norm(x, weight, 1e-5); }, {x, weight}, grad)),
             measure(forward_backward([&] { return at::rms_norm(x, {D}, same_type, 1e-5); }, {x, same_type}, grad)),
             5 * one);
  table.line("SwiGLU, bf16, 16384 x 2048", measure(forward_backward([&] { return swiglu(x, y); }, {x, y}, grad)),
             measure(forward_backward([&] { return at::silu(x) * y; }, {x, y}, grad)), 8 * one);
}

int run(const std::vector<std::string>& wanted) {
  if (!at::hasCUDA()) {
    std::printf("SKIPPED: no GPU here\n");
    return 0;
  }
  const std::vector<std::pair<std::string, void (*)(const Table&)>> parts = {
      {"pairs", time_pairs}, {"loss", time_losses}, {"routing", time_routing}, {"rest", time_norms_and_gates}};
  for (const std::string& name : wanted) {
    if (std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return part.first == name; })) continue;
    std::fprintf(stderr, "cuda_bench: '%s' is no part; known: pairs, loss, routing, rest\n", name.c_str());
    return 2;
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, compute capability %d.%d, %d multiprocessors. Forward and backward, medians of 21.\n", device.name,
              device.major, device.minor, device.multiProcessorCount);
  const Table table;
  for (const auto& [name, time] : parts) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) time(table);
  }
  return 0;
}

}  // namespace
}  // namespace dagmoe

int main(int argc, char** argv) { return dagmoe::run({argv + 1, argv + argc}); }
