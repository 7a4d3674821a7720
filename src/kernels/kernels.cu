#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "base/text.h"
#include "kernels/cuda_kernels.h"

// Plain CUDA twins of the reference kernels: a block of threads per row where a row is summed, a thread per element
// elsewhere. No atomics: every sum has a fixed order.

namespace dagmoe::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;

__device__ double to_accumulate(double value) { return value; }
__device__ float to_accumulate(float value) { return value; }
__device__ float to_accumulate(Bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

template <class T>
__device__ T to_element(Accumulate<T> value) {
  return value;
}
template <>
__device__ Bf16 to_element<Bf16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

template <class Real>
__device__ Real sigmoid(Real x) {
  return 1 / (1 + exp(-x));
}
/// The derivative of SiLU at x, given q = sigmoid(x).
template <class Real>
__device__ Real silu_slope(Real x, Real q) {
  return q * (1 + x * (1 - q));
}

struct Sum {
  template <class Real>
  __device__ Real operator()(Real a, Real b) const {
    return a + b;
  }
};
struct Largest {
  // A comparison with NaN is false; the sum of exponentials brings the NaN back.
  template <class Real>
  __device__ Real operator()(Real a, Real b) const {
    return a > b ? a : b;
  }
};

/// Combines one value of each of the kThreads threads; every thread gets the result.
template <class Real, class Combine>
__device__ Real over_block(Real value, Combine combine) {
  __shared__ Real of_warp[kWarps];
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  Real result = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) result = combine(result, of_warp[warp]);
  __syncthreads();  // of_warp is free for the next call
  return result;
}

/// The elements of a grid-stride loop over [0, count).
__device__ std::int64_t first_element() { return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ std::int64_t element_stride() { return static_cast<std::int64_t>(gridDim.x) * kThreads; }

/// Blocks for `count` elements or rows; what is beyond the limit the loops take in further rounds.
int num_blocks(std::int64_t count, std::int64_t per_block) {
  constexpr std::int64_t kMostBlocks = 1 << 16;
  return static_cast<int>(std::clamp<std::int64_t>((count + per_block - 1) / per_block, 1, kMostBlocks));
}

void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw InternalError(str("CUDA kernel ", name, ": ", cudaGetErrorString(error)));
}

template <class T>
__global__ void rms_norm_forward_kernel(RmsNormForward<T> args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = blockIdx.x; n < args.N; n += gridDim.x) {
    const T* x_D = args.x_ND + n * args.D;
    Real sum = 0;
    for (std::int64_t i = threadIdx.x; i < args.D; i += kThreads) sum += to_accumulate(x_D[i]) * to_accumulate(x_D[i]);
    const Real mean_square = over_block(sum, Sum()) / static_cast<Real>(args.D);
    const Real rstd = 1 / sqrt(mean_square + static_cast<Real>(args.eps));
    if (threadIdx.x == 0) args.rstd_N[n] = rstd;
    for (std::int64_t i = threadIdx.x; i < args.D; i += kThreads) {
      args.y_ND[n * args.D + i] = to_element<T>(to_accumulate(x_D[i]) * rstd * args.weight_D[i]);
    }
  }
}

template <class T>
__global__ void rms_norm_grad_x_kernel(RmsNormBackward<T> args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = blockIdx.x; n < args.N; n += gridDim.x) {
    const T* x_D = args.x_ND + n * args.D;
    const T* dy_D = args.grad_y_ND + n * args.D;
    const Real rstd = args.rstd_N[n];
    Real sum = 0;
    for (std::int64_t i = threadIdx.x; i < args.D; i += kThreads) {
      sum += args.weight_D[i] * to_accumulate(dy_D[i]) * (to_accumulate(x_D[i]) * rstd);
    }
    const Real mean = over_block(sum, Sum()) / static_cast<Real>(args.D);
    for (std::int64_t i = threadIdx.x; i < args.D; i += kThreads) {
      const Real normed = to_accumulate(x_D[i]) * rstd;
      args.grad_x_ND[n * args.D + i] =
          to_element<T>(rstd * (args.weight_D[i] * to_accumulate(dy_D[i]) - normed * mean));
    }
  }
}

/// A block sums kWarp columns: each of its warps every kWarps-th row, then the first warp adds up the others' sums.
template <class T>
__global__ void rms_norm_grad_weight_kernel(RmsNormBackward<T> args) {
  using Real = Accumulate<T>;
  __shared__ Real sums[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  Real sum = 0;
  if (column < args.D) {
    for (std::int64_t n = warp; n < args.N; n += kWarps) {
      const std::int64_t index = n * args.D + column;
      sum += to_accumulate(args.grad_y_ND[index]) * (to_accumulate(args.x_ND[index]) * args.rstd_N[n]);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= args.D) return;
  for (int other = 1; other < kWarps; ++other) sum += sums[other][lane];
  args.grad_weight_D[column] += sum;
}

template <class T>
__global__ void rope_kernel(Rope<T> args) {
  using Real = Accumulate<T>;
  const std::int64_t half = args.d / 2;
  for (std::int64_t k = first_element(); k < args.N * args.H * half; k += element_stride()) {
    const std::int64_t i = k % half, head = k / half % args.H, n = k / half / args.H;
    const T* x_d = args.x_NHd + n * args.x_stride + head * args.d;
    T* y_d = args.y_NHd + n * args.y_stride + head * args.d;
    const Real first = to_accumulate(x_d[i]), second = to_accumulate(x_d[i + half]);
    const Real cosine = args.cos_Nd2[n * half + i], sine = static_cast<Real>(args.sign) * args.sin_Nd2[n * half + i];
    y_d[i] = to_element<T>(first * cosine - second * sine);
    y_d[i + half] = to_element<T>(second * cosine + first * sine);
  }
}

template <class T>
__global__ void swiglu_forward_kernel(SwiGluForward<T> args) {
  for (std::int64_t n = first_element(); n < args.N; n += element_stride()) {
    const auto gate = to_accumulate(args.gate_N[n]);
    args.y_N[n] = to_element<T>(gate * sigmoid(gate) * to_accumulate(args.up_N[n]));
  }
}

template <class T>
__global__ void swiglu_backward_kernel(SwiGluBackward<T> args) {
  for (std::int64_t n = first_element(); n < args.N; n += element_stride()) {
    const auto gate = to_accumulate(args.gate_N[n]), up = to_accumulate(args.up_N[n]),
               dy = to_accumulate(args.grad_y_N[n]);
    const auto q = sigmoid(gate);
    args.grad_up_N[n] = to_element<T>(dy * (gate * q));
    args.grad_gate_N[n] = to_element<T>(dy * up * silu_slope(gate, q));
  }
}

template <class T>
__global__ void dag_pairs_forward_kernel(DagPairsForward<T> args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, G = args.G;
  for (std::int64_t k = first_element(); k < args.N * K * G; k += element_stride()) {
    const std::int64_t g = k % G, i = k / G % K, n = k / G / K;
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G + g;
    const Real a = to_accumulate(abce_K4G[(i * 4 + 0) * G]), c = to_accumulate(abce_K4G[(i * 4 + 2) * G]);
    Real sum = 0;
    for (std::int64_t j = 0; j < K; ++j) {
      const Real t = a + to_accumulate(abce_K4G[(j * 4 + 1) * G]);
      sum += t * sigmoid(t) * (c + to_accumulate(abce_K4G[(j * 4 + 3) * G]));
    }
    args.s_NKG[k] = to_element<T>(sum);
  }
}

template <class T>
__global__ void dag_pairs_backward_kernel(DagPairsBackward<T> args) {
  using Real = Accumulate<T>;
  const std::int64_t K = args.K, G = args.G;
  for (std::int64_t k = first_element(); k < args.N * K * G; k += element_stride()) {
    const std::int64_t g = k % G, i = k / G % K, n = k / G / K;
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G + g;
    const T* grad_s_KG = args.grad_s_NKG + n * K * G + g;
    const auto abce = [&](std::int64_t node, int which) { return to_accumulate(abce_K4G[(node * 4 + which) * G]); };
    const Real a = abce(i, 0), b = abce(i, 1), c = abce(i, 2), e = abce(i, 3), grad_s = to_accumulate(grad_s_KG[i * G]);
    Real grad_a = 0, grad_b = 0, grad_c = 0, grad_e = 0;
    for (std::int64_t j = 0; j < K; ++j) {
      // Node i as the target of the pair (i, j), then as the source of the pair (j, i).
      const Real in = a + abce(j, 1), in_gate = sigmoid(in);
      grad_a += grad_s * silu_slope(in, in_gate) * (c + abce(j, 3));
      grad_c += grad_s * (in * in_gate);
      const Real out = abce(j, 0) + b, out_gate = sigmoid(out), grad_s_j = to_accumulate(grad_s_KG[j * G]);
      grad_b += grad_s_j * silu_slope(out, out_gate) * (abce(j, 2) + e);
      grad_e += grad_s_j * (out * out_gate);
    }
    T* grad_4G = args.grad_abce_NK4G + (n * K + i) * 4 * G + g;
    grad_4G[0] = to_element<T>(grad_a);
    grad_4G[G] = to_element<T>(grad_b);
    grad_4G[2 * G] = to_element<T>(grad_c);
    grad_4G[3 * G] = to_element<T>(grad_e);
  }
}

template <class T>
__global__ void cross_entropy_kernel(CrossEntropy<T> args) {
  using Real = Accumulate<T>;
  for (std::int64_t n = blockIdx.x; n < args.N; n += gridDim.x) {
    T* logits_V = args.logits_NV + n * args.V;
    const std::int64_t target = args.target_N[n];
    Real largest = -INFINITY;
    for (std::int64_t v = threadIdx.x; v < args.V; v += kThreads)
      largest = Largest()(to_accumulate(logits_V[v]), largest);
    largest = over_block(largest, Largest());
    Real sum = 0;
    for (std::int64_t v = threadIdx.x; v < args.V; v += kThreads) sum += exp(to_accumulate(logits_V[v]) - largest);
    sum = over_block(sum, Sum());
    if (threadIdx.x == 0) {
      args.loss_N[n] = static_cast<double>(largest) + log(static_cast<double>(sum)) -
                       static_cast<double>(to_accumulate(logits_V[target]));
    }
    if (args.uniform_N != nullptr) {
      Real below_largest = 0;
      for (std::int64_t v = threadIdx.x; v < args.V; v += kThreads)
        below_largest += to_accumulate(logits_V[v]) - largest;
      below_largest = over_block(below_largest, Sum());
      if (threadIdx.x == 0) {
        args.uniform_N[n] =
            log(static_cast<double>(sum)) - static_cast<double>(below_largest) / static_cast<double>(args.V);
      }
    }
    if (args.keep_logits) continue;
    __syncthreads();  // the target's logit is read before it is overwritten
    const Real scale = static_cast<Real>(args.scale);
    // What the target distribution gives every class, and what it gives the label.
    const Real shared = static_cast<Real>(args.label_smoothing / static_cast<double>(args.V));
    const Real own = shared + static_cast<Real>(1 - args.label_smoothing);
    for (std::int64_t v = threadIdx.x; v < args.V; v += kThreads) {
      const Real probability = exp(to_accumulate(logits_V[v]) - largest) / sum;
      logits_V[v] = to_element<T>((probability - (v == target ? own : shared)) * scale);
    }
  }
}

}  // namespace

template <class T>
void rms_norm_forward(const RmsNormForward<T>& args, Stream stream) {
  rms_norm_forward_kernel<<<num_blocks(args.N, 1), kThreads, 0, stream>>>(args);
  check_launch("rms_norm_forward");
}
template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args, Stream stream) {
  if (args.grad_x_ND != nullptr) rms_norm_grad_x_kernel<<<num_blocks(args.N, 1), kThreads, 0, stream>>>(args);
  if (args.grad_weight_D != nullptr) {
    rms_norm_grad_weight_kernel<<<static_cast<unsigned>((args.D + kWarp - 1) / kWarp), kThreads, 0, stream>>>(args);
  }
  check_launch("rms_norm_backward");
}
template <class T>
void rope(const Rope<T>& args, Stream stream) {
  rope_kernel<<<num_blocks(args.N * args.H * (args.d / 2), kThreads), kThreads, 0, stream>>>(args);
  check_launch("rope");
}
template <class T>
void swiglu_forward(const SwiGluForward<T>& args, Stream stream) {
  swiglu_forward_kernel<<<num_blocks(args.N, kThreads), kThreads, 0, stream>>>(args);
  check_launch("swiglu_forward");
}
template <class T>
void swiglu_backward(const SwiGluBackward<T>& args, Stream stream) {
  swiglu_backward_kernel<<<num_blocks(args.N, kThreads), kThreads, 0, stream>>>(args);
  check_launch("swiglu_backward");
}
template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args, Stream stream) {
  dag_pairs_forward_kernel<<<num_blocks(args.N * args.K * args.G, kThreads), kThreads, 0, stream>>>(args);
  check_launch("dag_pairs_forward");
}
template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args, Stream stream) {
  dag_pairs_backward_kernel<<<num_blocks(args.N * args.K * args.G, kThreads), kThreads, 0, stream>>>(args);
  check_launch("dag_pairs_backward");
}
template <class T>
void cross_entropy(const CrossEntropy<T>& args, Stream stream) {
  cross_entropy_kernel<<<num_blocks(args.N, 1), kThreads, 0, stream>>>(args);
  check_launch("cross_entropy");
}

template void rms_norm_forward(const RmsNormForward<float>&, Stream);
template void rms_norm_forward(const RmsNormForward<Bf16>&, Stream);
template void rms_norm_forward(const RmsNormForward<double>&, Stream);
template void rms_norm_backward(const RmsNormBackward<float>&, Stream);
template void rms_norm_backward(const RmsNormBackward<Bf16>&, Stream);
template void rms_norm_backward(const RmsNormBackward<double>&, Stream);
template void rope(const Rope<float>&, Stream);
template void rope(const Rope<Bf16>&, Stream);
template void rope(const Rope<double>&, Stream);
template void swiglu_forward(const SwiGluForward<float>&, Stream);
template void swiglu_forward(const SwiGluForward<Bf16>&, Stream);
template void swiglu_forward(const SwiGluForward<double>&, Stream);
template void swiglu_backward(const SwiGluBackward<float>&, Stream);
template void swiglu_backward(const SwiGluBackward<Bf16>&, Stream);
template void swiglu_backward(const SwiGluBackward<double>&, Stream);
template void dag_pairs_forward(const DagPairsForward<float>&, Stream);
template void dag_pairs_forward(const DagPairsForward<Bf16>&, Stream);
template void dag_pairs_forward(const DagPairsForward<double>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<float>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<Bf16>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<double>&, Stream);
template void cross_entropy(const CrossEntropy<float>&, Stream);
template void cross_entropy(const CrossEntropy<Bf16>&, Stream);
template void cross_entropy(const CrossEntropy<double>&, Stream);

}  // namespace dagmoe::cuda
