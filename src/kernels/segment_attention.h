#pragma once

#include <cstdint>

#include "kernels/element.h"

// The parts of attention with gradients, on one block of queries and one block of keys (after FlashAttention, Dao et
// al. 2022). Scores lie transposed, keys by rows, so that maxima, sums and statistics of the softmax need no sum within
// a vector. Rows of floats begin at multiples of kRowFloats floats in memory; what lies between a row's end and the
// next such multiple may be read and written.

namespace dagmoe {

/// Floats that every vector register holds a whole number of times into.
inline constexpr std::int64_t kRowFloats = 16;
constexpr std::int64_t padded(std::int64_t size) { return (size + kRowFloats - 1) / kRowFloats * kRowFloats; }

/// c_mn = a_mk b_kn, or c_mn += a_mk b_kn, for a few hundred rows and columns; n is a multiple of kRowFloats. Element
/// (i, p) of a is a[i * a_row + p * a_column], so that a may be transposed.
struct SmallProduct {
  std::int64_t m, n, k;
  const float* a;
  std::int64_t a_row, a_column;
  const float* b_kn;
  std::int64_t b_stride;
  float* c_mn;
  std::int64_t c_stride;
  bool is_added;
};

/// to_CN = from_NC transposed; N and C are multiples of kRowFloats.
struct Transpose {
  std::int64_t N, C;
  const float* from_NC;
  std::int64_t from_stride;
  float* to_CN;
  std::int64_t to_stride;
};

/// dot_N: the products of row n of a and row n of b, of width d, summed.
template <class T>
struct RowDots {
  std::int64_t N, d;
  const T* a_Nd;
  std::int64_t a_stride;
  const T* b_Nd;
  std::int64_t b_stride;
  float* dot_N;
};

/// R rows, M heads of one query after those of the query before, and C keys. Key 0 stands `first_key` positions after
/// row 0's query. A query sees its own position and those before; with a window above 0 the last `window` of these.
struct AttentionBlock {
  std::int64_t R, C, M, first_key, window;
};

/// Numbers [begin, end).
struct SeenRange {
  std::int64_t begin, end;
};
constexpr std::int64_t bounded(std::int64_t x, std::int64_t most) { return x < 0 ? 0 : x > most ? most : x; }
/// The rows that see key c, and the keys that row r sees.
constexpr SeenRange rows_seeing(const AttentionBlock& block, std::int64_t c) {
  const std::int64_t position = block.first_key + c;
  return {bounded(position * block.M, block.R),
          block.window > 0 ? bounded((position + block.window) * block.M, block.R) : block.R};
}
constexpr SeenRange keys_seen_by(const AttentionBlock& block, std::int64_t r) {
  const std::int64_t end = r / block.M - block.first_key + 1;
  return {block.window > 0 ? bounded(end - block.window, block.C) : 0, bounded(end, block.C)};
}

/// One step of the softmax of rows whose keys come block by block. top_R: the largest score so far, at first
/// kLowestTop; sum_R: the sum so far of e^(score - top).
///   weights <- e^(score - new top) where seen, 0 elsewhere;   factor_R: e^(old top - new top)
struct AttentionWeights {
  AttentionBlock block;
  float* weights_CR;  ///< scores on entry; may hold anything where nothing is seen
  std::int64_t stride;
  float *top_R, *sum_R, *factor_R;
};
/// Below every score, and finite, so that a row that has seen nothing yet gives no infinity minus infinity.
inline constexpr float kLowestTop = -3.0e38F;

/// Weights again, from log_sum_exp_R, and the gradient of the scores.
///   weights <- e^(score - log_sum_exp),   slopes <- weights * (slopes - delta_R),   both 0 where nothing is seen
struct AttentionSlopes {
  AttentionBlock block;
  float *weights_CR, *slopes_CR;  ///< on entry scores and gradients of the weights
  std::int64_t stride;
  const float *log_sum_exp_R, *delta_R;
};

}  // namespace dagmoe
