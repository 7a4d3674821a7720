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

}  // namespace dagmoe::cuda
