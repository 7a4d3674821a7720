#include "kernels/cuda_device.cuh"
#include "kernels/cuda_kernels.h"

// RMSNorm, RoPE and SwiGLU: a block of threads per row where a row is summed, a thread per element elsewhere.

namespace dagmoe::cuda {
namespace {

constexpr int kColumns = 16, kGroups = 64, kColumnThreads = kColumns * kGroups;

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

/// A block sums kColumns columns, 32 bytes of a bfloat16 row: each of its groups of threads every kGroups-th row, then
/// the first group adds up the others' sums.
template <class T>
__global__ void __launch_bounds__(kColumnThreads) rms_norm_grad_weight_kernel(RmsNormBackward<T> args) {
  using Real = Accumulate<T>;
  __shared__ Real sums[kGroups][kColumns];
  const int lane = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + lane;
  Real sum = 0;
  if (column < args.D) {
#pragma unroll 4
    for (std::int64_t n = group; n < args.N; n += kGroups) {
      const std::int64_t index = n * args.D + column;
      sum += to_accumulate(args.grad_y_ND[index]) * (to_accumulate(args.x_ND[index]) * args.rstd_N[n]);
    }
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group > 0 || column >= args.D) return;
  for (int other = 1; other < kGroups; ++other) sum += sums[other][lane];
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
    const auto blocks = static_cast<unsigned>((args.D + kColumns - 1) / kColumns);
    rms_norm_grad_weight_kernel<<<blocks, kColumnThreads, 0, stream>>>(args);
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

}  // namespace dagmoe::cuda
