#pragma once

#include <cstdint>

#include "kernels/element.h"

namespace dagmoe {

/// The two products of attention for a handful of queries, where packing for a matrix product costs more than the
/// product: R queries over C keys (or values) of width d, row c at rows_Cd + c * row_stride.
template <class T>
struct FewRows {
  std::int64_t R, C, d, row_stride;
  const T* rows_Cd;
  const float* queries_Rd;  ///< of few_row_scores
  float* scores_RC;         ///< few_row_scores writes the products; few_row_values reads weights
  std::int64_t score_stride;
  float* out_Rd;  ///< few_row_values adds the weighted sums of rows
};

/// Rows of a tensor and the same rows as floats, N of width d.
///   rows_to_floats: floats = rows * scale        floats_to_rows: row n = floats * scale / divisor_N[n]
template <class T>
struct FloatRows {
  std::int64_t N, d, row_stride;
  T* rows_Nd;
  float* floats_Nd;
  float scale = 1;
  const float* divisor_N = nullptr;  ///< null: 1
  std::int64_t floats_stride = 0;    ///< 0: side by side
};
template <class T>
constexpr std::int64_t float_stride(const FloatRows<T>& args) {
  return args.floats_stride > 0 ? args.floats_stride : args.d;
}

}  // namespace dagmoe
