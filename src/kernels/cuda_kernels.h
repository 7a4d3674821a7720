#pragma once

#include "kernels/cross_entropy.h"
#include "kernels/dag_pairs.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

struct CUstream_st;

/// The same blocks on a GPU, for float, Bf16 and double: pointers are device memory, a call only queues work on
/// `stream` (a cudaStream_t). Defined in a build with DAGMOE_CUDA. Every sum has a fixed order, so results repeat bit
/// for bit.
namespace dagmoe::cuda {

using Stream = CUstream_st*;

template <class T>
void rms_norm_forward(const RmsNormForward<T>& args, Stream stream);
template <class T>
void rms_norm_backward(const RmsNormBackward<T>& args, Stream stream);
template <class T>
void rope(const Rope<T>& args, Stream stream);
template <class T>
void swiglu_forward(const SwiGluForward<T>& args, Stream stream);
template <class T>
void swiglu_backward(const SwiGluBackward<T>& args, Stream stream);
template <class T>
void dag_pairs_forward(const DagPairsForward<T>& args, Stream stream);
template <class T>
void dag_pairs_backward(const DagPairsBackward<T>& args, Stream stream);
template <class T>
void cross_entropy(const CrossEntropy<T>& args, Stream stream);

/// Slots (K of every token) in the order of the expert they chose, ties in the order of the slots: a stable counting
/// sort. Their twin is route_rows on the CPU (kernels/ops_routing.cpp).
struct SortByExpert {
  std::int64_t num_slots, K, E;
  const std::int64_t* expert_of_slot;
  std::int32_t* scratch_E1C;  ///< [E + 1, num_sort_chunks]
  std::int32_t* count_E1;     ///< zeros at first; slots of each expert, and behind them those that chose no expert
  std::int64_t* token_of_row;
  std::int64_t* row_of_slot;
};
std::int64_t num_sort_chunks(std::int64_t num_slots);
/// At most 12,287 experts and 2^31 slots.
void sort_by_expert(const SortByExpert& args, Stream stream);

/// Rows of `row_bytes` bytes: result[n] = source[index[n]] (gather) or result[index[n]] = source[n] (scatter, where the
/// indices are a permutation).
struct MoveRows {
  std::int64_t num_rows, row_bytes;
  const void* source;
  const std::int64_t* index;
  void* result;
};
void gather_rows(const MoveRows& args, Stream stream);
void scatter_rows(const MoveRows& args, Stream stream);

/// result[n] = the sum of the K rows of `source` that row_of_slot names for token n, in slot order.
template <class T>
struct SumRows {
  std::int64_t N, K, D;
  const T* source_RD;
  const std::int64_t* row_of_slot_NK;
  T* result_ND;
};
template <class T>
void sum_rows(const SumRows<T>& args, Stream stream);

}  // namespace dagmoe::cuda
