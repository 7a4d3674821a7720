#include <limits>

#include "kernels/cuda_device.cuh"
#include "kernels/cuda_kernels.h"

// A block of threads per row of logits. One pass finds the maximum and the sum of exponentials together; a second,
// whose reads come from the L2 cache, replaces the logits by their gradient.

namespace dagmoe::cuda {
namespace {

constexpr int kRowThreads = 512, kRowBlocksPerProcessor = 4;

/// f(values, index of the first) for W elements that lie at an aligned place, then writes back what f left there.
template <bool kWrites, int W, class T, class F>
__device__ void visit_pack(T* row_V, std::int64_t first, F& f) {
  Accumulate<T> values[W];
  load(row_V + first, values);
  f(values, first);
  if (kWrites) store(row_V + first, values);
}

/// visit_pack for this thread's share of a row: 16 bytes at a time, single elements before the first aligned place and
/// after the last.
template <bool kWrites, class T, class F>
__device__ void visit_row(T* row_V, std::int64_t V, F f) {
  constexpr int W = 16 / sizeof(T);
  const auto beyond = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row_V) % 16 / sizeof(T));
  const std::int64_t begin = min(V, (W - beyond) % W), end = begin + (V - begin) / W * W;
  for (std::int64_t v = threadIdx.x; v < begin; v += kRowThreads) visit_pack<kWrites, 1>(row_V, v, f);
#pragma unroll 2
  for (std::int64_t v = begin + threadIdx.x * W; v < end; v += kRowThreads * W) visit_pack<kWrites, W>(row_V, v, f);
  for (std::int64_t v = end + threadIdx.x; v < V; v += kRowThreads) visit_pack<kWrites, 1>(row_V, v, f);
}

template <class Real>
struct RowSums {
  // Finite, so that a difference to it is never NaN when the logits so far are minus infinity.
  Real largest = std::numeric_limits<Real>::lowest();
  Real exponentials = 0;  // of the logits less the largest
  Real logits = 0;
};

template <class T>
__device__ RowSums<Accumulate<T>> sum_row(T* logits_V, std::int64_t V) {
  using Real = Accumulate<T>;
  RowSums<Real> own;
  visit_row</*kWrites=*/false>(logits_V, V, [&own]<int W>(Real(&values)[W], std::int64_t) {
    Real largest = own.largest;
#pragma unroll
    for (int w = 0; w < W; ++w) largest = Largest()(values[w], largest);
    own.exponentials *= fast_exp(own.largest - largest);
    own.largest = largest;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      own.exponentials += fast_exp(values[w] - largest);
      own.logits += values[w];
    }
  });
  RowSums<Real> all;
  all.largest = over_block<kRowThreads>(own.largest, Largest());
  all.exponentials = over_block<kRowThreads>(own.exponentials * fast_exp(own.largest - all.largest), Sum());
  all.logits = over_block<kRowThreads>(own.logits, Sum());
  return all;
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerProcessor) cross_entropy_kernel(CrossEntropy<T> args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = blockIdx.x; n < args.N; n += gridDim.x) {
    T* logits_V = args.logits_NV + n * args.V;
    const std::int64_t target = args.target_N[n];
    const Real target_logit = to_accumulate(logits_V[target]);  // before any thread overwrites it
    const RowSums<Real> sums = sum_row(logits_V, args.V);
    if (threadIdx.x == 0) {
      const double log_sum_exp = static_cast<double>(sums.largest) + log(static_cast<double>(sums.exponentials));
      args.loss_N[n] = log_sum_exp - static_cast<double>(target_logit);
      if (args.uniform_N != nullptr) {
        args.uniform_N[n] = log_sum_exp - static_cast<double>(sums.logits) / static_cast<double>(args.V);
      }
    }
    if (args.keep_logits) continue;
    const Real scale = static_cast<Real>(args.scale), inverse = 1 / sums.exponentials, largest = sums.largest;
    // What the target distribution gives every class, and what it gives the label.
    const Real shared = static_cast<Real>(args.label_smoothing / static_cast<double>(args.V));
    const Real own = shared + static_cast<Real>(1 - args.label_smoothing);
    visit_row</*kWrites=*/true>(logits_V, args.V, [=]<int W>(Real(&values)[W], std::int64_t first) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const Real probability = fast_exp(values[w] - largest) * inverse;
        values[w] = (probability - (first + w == target ? own : shared)) * scale;
      }
    });
  }
}

}  // namespace

template <class T>
void cross_entropy(const CrossEntropy<T>& args, Stream stream) {
  cross_entropy_kernel<<<num_blocks(args.N, 1), kRowThreads, 0, stream>>>(args);
  check_launch("cross_entropy");
}

template void cross_entropy(const CrossEntropy<float>&, Stream);
template void cross_entropy(const CrossEntropy<Bf16>&, Stream);
template void cross_entropy(const CrossEntropy<double>&, Stream);

}  // namespace dagmoe::cuda
