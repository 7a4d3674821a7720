#include <limits>

#include "kernels/cuda_device.cuh"
#include "kernels/cuda_kernels.h"

// A block of threads per row of logits. One pass finds the maximum and the sum of exponentials together and keeps the
// row in shared memory, as far as it fits; a second replaces the logits by their gradient. Rows longer than that come
// from the L2 cache again.

namespace dagmoe::cuda {
namespace {

constexpr int kRowThreads = 1024;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kRowsPerProcessor = 1;  // of 1,536 threads
#else
constexpr int kRowsPerProcessor = 2;  // of 2,048 threads
#endif

/// A row of logits: packs of 16 bytes, single elements before the first aligned place and after the last.
template <class T>
struct Row {
  static constexpr int W = 16 / sizeof(T);
  T* logits_V;
  int V, first_pack, num_packs;  // the first pack begins at element first_pack
  uint4* kept;                   // the first num_kept packs, in shared memory
  int num_kept;

  __device__ Row(T* logits, std::int64_t size, uint4* shared, int num_shared)
      : logits_V(logits), V(static_cast<int>(size)) {
    const auto beyond = static_cast<int>(reinterpret_cast<std::uintptr_t>(logits) % 16 / sizeof(T));
    first_pack = min(V, (W - beyond) % W);
    num_packs = (V - first_pack) / W;
    kept = shared;
    num_kept = min(num_shared, num_packs);
  }

  /// f(values, index of the first) for this thread's share of the row, which it keeps.
  template <class F>
  __device__ void read(F f) const {
#pragma unroll 2
    for (int k = threadIdx.x; k < num_packs; k += kRowThreads) {
      const int v = first_pack + k * W;
      const uint4 pack = *reinterpret_cast<const uint4*>(logits_V + v);
      if (k < num_kept) kept[k] = pack;
      Accumulate<T> values[W];
      unpack<T, W>(pack, values);
      f(values, v);
    }
    visit_single(f, /*writes=*/false);
  }

  /// The same from what was kept; what f leaves in `values` is the new row.
  template <class F>
  __device__ void replace(F f) const {
    for (int k = threadIdx.x; k < num_packs; k += kRowThreads) {
      const int v = first_pack + k * W;
      uint4 pack;
      if (k < num_kept) {
        pack = kept[k];
      } else {
        pack = *reinterpret_cast<const uint4*>(logits_V + v);
      }
      Accumulate<T> values[W];
      unpack<T, W>(pack, values);
      f(values, v);
      store(logits_V + v, values);
    }
    visit_single(f, /*writes=*/true);
  }

 private:
  template <class F>
  __device__ void visit_single(F f, bool writes) const {
    const int behind = first_pack + num_packs * W, num_single = V - num_packs * W;
    for (int k = threadIdx.x; k < num_single; k += kRowThreads) {
      const int v = k < first_pack ? k : behind + k - first_pack;
      Accumulate<T> values[1] = {to_accumulate(logits_V[v])};
      f(values, v);
      if (writes) logits_V[v] = to_element<T>(values[0]);
    }
  }
};

template <class Real>
struct RowSums {
  // Finite, so that a difference to it is never NaN when the logits so far are minus infinity.
  Real largest = std::numeric_limits<Real>::lowest();
  Real exponentials = 0;  // of the logits less the largest
  Real logits = 0;
};

template <class T>
__device__ RowSums<Accumulate<T>> sum_row(const Row<T>& row) {
  using Real = Accumulate<T>;
  RowSums<Real> own;
  row.read([&own]<int W>(Real(&values)[W], int) {
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
__global__ void __launch_bounds__(kRowThreads, sizeof(T) < sizeof(double) ? kRowsPerProcessor : 1)
    cross_entropy_kernel(CrossEntropy<T> args, int num_shared) {
  extern __shared__ uint4 shared[];
  using Real = Accumulate<T>;
  for (std::int64_t n = blockIdx.x; n < args.N; n += gridDim.x) {
    T* logits_V = args.logits_NV + n * args.V;
    const std::int64_t target = args.target_N[n];
    const Real target_logit = to_accumulate(logits_V[target]);  // before any thread overwrites it
    const Row<T> row(logits_V, args.V, shared, num_shared);
    const RowSums<Real> sums = sum_row(row);
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
    row.replace([=]<int W>(Real(&values)[W], int first) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const Real probability = fast_exp(values[w] - largest) * inverse;
        values[w] = (probability - (first + w == target ? own : shared)) * scale;
      }
    });
  }
}

/// Bytes of shared memory that the device gives a block of `kernel` beside what the kernel has anyway.
template <class Kernel>
int most_shared_bytes(Kernel kernel) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncGetAttributes(&attributes, kernel);
  return most - static_cast<int>(attributes.sharedSizeBytes);
}

}  // namespace

template <class T>
void cross_entropy(const CrossEntropy<T>& args, Stream stream) {
  constexpr auto kernel = cross_entropy_kernel<T>;
  const std::int64_t row_bytes = args.V * static_cast<std::int64_t>(sizeof(T));
  // Nothing need be kept for a second pass that does not come.
  const std::int64_t wanted = args.keep_logits ? 0 : row_bytes / 16 * 16;
  const int shared_bytes = static_cast<int>(std::min<std::int64_t>(wanted, most_shared_bytes(kernel) / 16 * 16));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  kernel<<<num_blocks(args.N, 1), kRowThreads, shared_bytes, stream>>>(args, shared_bytes / 16);
  check_launch("cross_entropy");
}

template void cross_entropy(const CrossEntropy<float>&, Stream);
template void cross_entropy(const CrossEntropy<Bf16>&, Stream);
template void cross_entropy(const CrossEntropy<double>&, Stream);

}  // namespace dagmoe::cuda
