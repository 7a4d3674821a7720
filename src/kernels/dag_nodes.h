#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// The nodes of the DAG from the chosen experts' outputs E, and their sum (eq. 6, method.md 1.2): per token
///   x_i = w_i E_i + residual / K,   out = outer + sum_i w_i E_i + extra
/// Sums are in the accumulate type and rounded once.
template <class T>
struct DagNodesForward {
  std::int64_t N, K, D;
  const T* expert_NKD;
  const Accumulate<T>* weight_NK;  ///< null: all 1
  const T* residual_ND = nullptr;  ///< null: nothing is added to the nodes
  const T* outer_ND = nullptr;     ///< these two: null where nothing is added
  const T* extra_ND = nullptr;
  T* nodes_NKD = nullptr;  ///< null when not wanted
  T* out_ND = nullptr;     ///< null when not wanted
};

/// Given g = grad of out and m_i = grad of x_i:
///   dE_i = w_i (g + m_i),   dw_i = <g + m_i, E_i>,   grad_residual = g + sum_i m_i / K
/// (every residual is a part of `out`, too, hence its g).
template <class T>
struct DagNodesBackward {
  std::int64_t N, K, D;
  const T* expert_NKD;
  const Accumulate<T>* weight_NK;
  const T* grad_out_ND;
  const T* grad_nodes_NKD;       ///< null: no node was used but in the sum
  T* grad_expert_NKD = nullptr;  ///< these three: null when not wanted
  Accumulate<T>* grad_weight_NK = nullptr;
  T* grad_residual_ND = nullptr;
};

}  // namespace dagmoe
