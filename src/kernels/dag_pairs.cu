#include <initializer_list>
#include <type_traits>

#include "kernels/cuda_device.cuh"
#include "kernels/cuda_kernels.h"

// The pair step of the DAG. For 2 to 8 nodes a thread holds all nodes of W elements of a token in registers, so that
// each number is read once and each gate formed once; the plain kernels take every other shape.

namespace dagmoe::cuda {
namespace {

constexpr int kPairThreads = 128, kMostNodes = 8;

/// Elements a thread takes: what fits into registers beside 4 K sums and projections of each.
template <int K>
constexpr int kWidth = K <= 4 ? 4 : 2;

template <class T, int K>
__global__ void __launch_bounds__(kPairThreads) forward_in_registers(DagPairsForward<T> args) {
  constexpr int W = kWidth<K>;
  using Real = Accumulate<T>;
  const std::int64_t G = args.G, packs = G / W;
  for (std::int64_t k = first_element(); k < args.N * packs; k += element_stride()) {
    const std::int64_t n = k / packs, g = k % packs * W;
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G + g;
    Real b[K][W], e[K][W];
#pragma unroll
    for (int j = 0; j < K; ++j) {
      load(abce_K4G + (j * 4 + 1) * G, b[j]);
      load(abce_K4G + (j * 4 + 3) * G, e[j]);
    }
#pragma unroll
    for (int i = 0; i < K; ++i) {
      Real a[W], c[W], sum[W] = {};
      load(abce_K4G + (i * 4 + 0) * G, a);
      load(abce_K4G + (i * 4 + 2) * G, c);
#pragma unroll
      for (int j = 0; j < K; ++j) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const Real t = a[w] + b[j][w];
          sum[w] += t * sigmoid(t) * (c[w] + e[j][w]);
        }
      }
      store(args.s_NKG + (n * K + i) * G + g, sum);
    }
  }
}

template <class T, int K>
__global__ void __launch_bounds__(kPairThreads) backward_in_registers(DagPairsBackward<T> args) {
  constexpr int W = kWidth<K>;
  using Real = Accumulate<T>;
  const std::int64_t G = args.G, packs = G / W;
  for (std::int64_t k = first_element(); k < args.N * packs; k += element_stride()) {
    const std::int64_t n = k / packs, g = k % packs * W;
    const T* abce_K4G = args.abce_NK4G + n * K * 4 * G + g;
    T* grad_K4G = args.grad_abce_NK4G + n * K * 4 * G + g;
    Real b[K][W], e[K][W], grad_b[K][W] = {}, grad_e[K][W] = {};
#pragma unroll
    for (int j = 0; j < K; ++j) {
      load(abce_K4G + (j * 4 + 1) * G, b[j]);
      load(abce_K4G + (j * 4 + 3) * G, e[j]);
    }
#pragma unroll
    for (int i = 0; i < K; ++i) {
      Real a[W], c[W], grad_s[W], grad_a[W] = {}, grad_c[W] = {};
      load(abce_K4G + (i * 4 + 0) * G, a);
      load(abce_K4G + (i * 4 + 2) * G, c);
      load(args.grad_s_NKG + (n * K + i) * G + g, grad_s);
#pragma unroll
      for (int j = 0; j < K; ++j) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          // The pair (i, j): node i is its target, node j its source.
          const Real t = a[w] + b[j][w], gate = sigmoid(t);
          const Real to_gate = grad_s[w] * silu_slope(t, gate) * (c[w] + e[j][w]), to_value = grad_s[w] * (t * gate);
          grad_a[w] += to_gate;
          grad_b[j][w] += to_gate;
          grad_c[w] += to_value;
          grad_e[j][w] += to_value;
        }
      }
      store(grad_K4G + (i * 4 + 0) * G, grad_a);
      store(grad_K4G + (i * 4 + 2) * G, grad_c);
    }
#pragma unroll
    for (int j = 0; j < K; ++j) {
      store(grad_K4G + (j * 4 + 1) * G, grad_b[j]);
      store(grad_K4G + (j * 4 + 3) * G, grad_e[j]);
    }
  }
}

template <class T>
__global__ void forward_plain(DagPairsForward<T> args) {
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
__global__ void backward_plain(DagPairsBackward<T> args) {
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

/// Calls launch(K as a constant) when the kernels in registers take this shape and these pointers.
template <class T, int K = 2, class Launch>
bool launched_in_registers(std::int64_t num_nodes, std::int64_t G, std::initializer_list<const void*> pointers,
                           Launch launch) {
  if constexpr (K <= kMostNodes && sizeof(T) <= sizeof(float)) {
    if (num_nodes != K) return launched_in_registers<T, K + 1>(num_nodes, G, pointers, launch);
    constexpr int W = kWidth<K>;
    const bool aligned = G % W == 0 && std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) {
                           return is_aligned(pointer, W * sizeof(T));
                         });
    if (aligned) launch(std::integral_constant<int, K>());
    return aligned;
  } else {
    return false;
  }
}

}  // namespace

template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args, Stream stream) {
  const auto launch = [&](auto constant) {
    constexpr int K = decltype(constant)::value;
    const int blocks = num_blocks(args.N * (args.G / kWidth<K>), kPairThreads);
    forward_in_registers<T, K><<<blocks, kPairThreads, 0, stream>>>(args);
  };
  if (!launched_in_registers<T>(args.K, args.G, {args.abce_NK4G, args.s_NKG}, launch)) {
    forward_plain<<<num_blocks(args.N * args.K * args.G, kThreads), kThreads, 0, stream>>>(args);
  }
  check_launch("dag_pairs_forward");
}

template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args, Stream stream) {
  const auto launch = [&](auto constant) {
    constexpr int K = decltype(constant)::value;
    const int blocks = num_blocks(args.N * (args.G / kWidth<K>), kPairThreads);
    backward_in_registers<T, K><<<blocks, kPairThreads, 0, stream>>>(args);
  };
  if (!launched_in_registers<T>(args.K, args.G, {args.abce_NK4G, args.grad_s_NKG, args.grad_abce_NK4G}, launch)) {
    backward_plain<<<num_blocks(args.N * args.K * args.G, kThreads), kThreads, 0, stream>>>(args);
  }
  check_launch("dag_pairs_backward");
}

template void dag_pairs_forward(const DagPairsForward<float>&, Stream);
template void dag_pairs_forward(const DagPairsForward<Bf16>&, Stream);
template void dag_pairs_forward(const DagPairsForward<double>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<float>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<Bf16>&, Stream);
template void dag_pairs_backward(const DagPairsBackward<double>&, Stream);

}  // namespace dagmoe::cuda
