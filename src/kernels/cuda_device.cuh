#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/error.h"
#include "base/text.h"
#include "kernels/element.h"

// What the .cu files share: numbers, loads of several elements, sums over a block, launches. No sum anywhere depends on
// the order in which threads happen to run.

namespace dagmoe::cuda {

constexpr int kThreads = 256, kWarp = 32;

// ---- numbers

__device__ inline double to_accumulate(double value) { return value; }
__device__ inline float to_accumulate(float value) { return value; }
__device__ inline float to_accumulate(Bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

template <class T>
__device__ inline T to_element(Accumulate<T> value) {
  return value;
}
template <>
__device__ inline Bf16 to_element<Bf16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

/// Floats go through the special function unit: a relative error of 2 + 1.2 |x| units in the last place. Results too
/// small for a normal float are 0.
__device__ inline float fast_exp(float x) {
  constexpr float kLog2E = 1.4426950408889634F;
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2E));
  return result;
}
__device__ inline double fast_exp(double x) { return exp(x); }

__device__ inline float sigmoid(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + fast_exp(-x)));
  return result;
}
__device__ inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/// The derivative of SiLU at x, given q = sigmoid(x).
template <class Real>
__device__ Real silu_slope(Real x, Real q) {
  return q * (1 + x * (1 - q));
}

// ---- several elements in one access

/// What one access moves.
template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<16> {
  using type = uint4;
};
template <>
struct AccessOf<8> {
  using type = uint2;
};
template <>
struct AccessOf<4> {
  using type = unsigned;
};
template <>
struct AccessOf<2> {
  using type = unsigned short;
};
template <class T, int W>
using Access = typename AccessOf<W* static_cast<int>(sizeof(T))>::type;

template <class T, int W>
__device__ void unpack(Access<T, W> access, Accumulate<T> (&values)[W]) {
  T elements[W];
  memcpy(elements, &access, sizeof elements);
#pragma unroll
  for (int w = 0; w < W; ++w) values[w] = to_accumulate(elements[w]);
}

/// `from` is aligned to W elements; so is `to` below.
template <int W, class T>
__device__ void load(const T* from, Accumulate<T> (&values)[W]) {
  unpack<T, W>(*reinterpret_cast<const Access<T, W>*>(from), values);
}

template <int W, class T>
__device__ void store(T* to, const Accumulate<T> (&values)[W]) {
  T elements[W];
#pragma unroll
  for (int w = 0; w < W; ++w) elements[w] = to_element<T>(values[w]);
  Access<T, W> access;
  memcpy(&access, elements, sizeof access);
  *reinterpret_cast<Access<T, W>*>(to) = access;
}

inline bool is_aligned(const void* pointer, std::size_t num_bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % num_bytes == 0;
}

// ---- sums over a block

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

/// Combines one value of each of the kSize threads of a block; every thread gets the result.
template <int kSize = kThreads, class Real, class Combine>
__device__ Real over_block(Real value, Combine combine) {
  constexpr int kWarps = kSize / kWarp;
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

// ---- launches

/// The elements of a grid-stride loop over [0, count).
__device__ inline std::int64_t first_element() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t element_stride() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

/// Blocks for `count` elements or rows; what is beyond the limit the loops take in further rounds.
inline int num_blocks(std::int64_t count, std::int64_t per_block) {
  constexpr std::int64_t kMostBlocks = 1 << 16;
  return static_cast<int>(std::clamp<std::int64_t>((count + per_block - 1) / per_block, 1, kMostBlocks));
}

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw InternalError(str("CUDA kernel ", name, ": ", cudaGetErrorString(error)));
}

}  // namespace dagmoe::cuda
