#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// The pair step of one DAG iteration with factorised edges (arXiv:2606.01062 eq. 9-11, method.md 1.2 DAG-1):
///   S_i = sum over j of SiLU(a_i + b_j) * (c_i + e_j),   i, j = 1..K, element-wise over G
/// No K x K x G array is ever stored.
template <class T>
struct DagPairsForward {
  std::int64_t N, K, G;  ///< N tokens
  const T* abce_NK4G;    ///< the four projections of every node, side by side
  T* s_NKG;
};

/// Method.md 1.7: the gates are formed again from abce. grad_s -> grad_abce.
template <class T>
struct DagPairsBackward {
  std::int64_t N, K, G;
  const T* abce_NK4G;
  const T* grad_s_NKG;
  T* grad_abce_NK4G;
};

}  // namespace dagmoe
