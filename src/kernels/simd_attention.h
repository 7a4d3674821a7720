#pragma once

#include "kernels/simd_kernels.h"

// The vector forms of segment_attention.h, for the tables of simd_kernels.h; the same rules hold.

namespace dagmoe {
namespace {

// The sums of a tile of the product stay in registers: 24 of 32, or 12 of 16.
constexpr int kTileRows = 6, kTileVecs = Vec::kLanes == 16 ? 4 : 2;

template <int kRows, int kVecs>
void product_tile(const SmallProduct& args, std::int64_t i, std::int64_t j) {
  const float* a = args.a + i * args.a_row;
  const float* b = args.b_kn + j;
  float* c = args.c_mn + i * args.c_stride + j;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sums[r][v] = args.is_added ? load(c + r * args.c_stride + v * Vec::kLanes) : set(0);
  }
  const std::int64_t a_row = args.a_row, a_column = args.a_column, b_stride = args.b_stride;
  for (std::int64_t p = 0; p < args.k; ++p, a += a_column, b += b_stride) {
    Vec row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + v * Vec::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = set(a[r * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = multiply_add(factor, row[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(c + r * args.c_stride + v * Vec::kLanes, sums[r][v]);
  }
}

template <int kVecs>
void product_columns(const SmallProduct& args, std::int64_t j) {
  std::int64_t i = 0;
  for (; i + kTileRows <= args.m; i += kTileRows) product_tile<kTileRows, kVecs>(args, i, j);
  switch (args.m - i) {
    case 5:
      return product_tile<5, kVecs>(args, i, j);
    case 4:
      return product_tile<4, kVecs>(args, i, j);
    case 3:
      return product_tile<3, kVecs>(args, i, j);
    case 2:
      return product_tile<2, kVecs>(args, i, j);
    case 1:
      return product_tile<1, kVecs>(args, i, j);
    default:
      return;
  }
}

void small_product(const SmallProduct& args) {
  constexpr std::int64_t kTileColumns = kTileVecs * Vec::kLanes;
  std::int64_t j = 0;
  for (; j + kTileColumns <= args.n; j += kTileColumns) product_columns<kTileVecs>(args, j);
  switch ((args.n - j) / Vec::kLanes) {
    case 3:
      return product_columns<3>(args, j);
    case 2:
      return product_columns<2>(args, j);
    case 1:
      return product_columns<1>(args, j);
    default:
      return;
  }
}

// Eight rows and columns; both instruction sets have registers of eight floats.
void transpose_eight(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride) {
  __m256 row[8], pair[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    row[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
    row[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
    row[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
    row[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(row[i], row[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(row[i], row[i + 4], 0x31));
  }
}

void transpose(const Transpose& args) {
  for (std::int64_t n = 0; n < args.N; n += 8) {
    for (std::int64_t c = 0; c < args.C; c += 8) {
      transpose_eight(args.from_NC + n * args.from_stride + c, args.from_stride, args.to_CN + c * args.to_stride + n,
                      args.to_stride);
    }
  }
}

template <class T>
void row_dots(const RowDots<T>& args) {
  for (std::int64_t n = 0; n < args.N; ++n) {
    const T *a_d = args.a_Nd + n * args.a_stride, *b_d = args.b_Nd + n * args.b_stride;
    args.dot_N[n] =
        sum_blocks(args.d, [&](std::int64_t i, auto lanes) { return load(a_d + i, lanes) * load(b_d + i, lanes); });
  }
}

/// The lanes of one vector of rows that see a key: those from `begin` to `end`.
struct SomeLanes {
  std::int64_t begin, end;
};
Vec only(Vec a, SomeLanes seen, Vec rest) {
  return keep(keep(rest, first_lanes(seen.begin), a), first_lanes(seen.end), rest);
}
Vec only(Vec a, AllLanes, Vec) { return a; }

/// Calls body(c, lanes) for the keys that any of rows [r, r + lanes) sees.
template <class Body>
void for_each_seen_key(const AttentionBlock& block, std::int64_t r, Body body) {
  const std::int64_t last_row = r + Vec::kLanes <= block.R ? r + Vec::kLanes - 1 : block.R - 1;
  const SeenRange first = keys_seen_by(block, r), last = keys_seen_by(block, last_row);
  const auto some = [&](std::int64_t c) {
    const SeenRange rows = rows_seeing(block, c);
    body(c, SomeLanes{bounded(rows.begin - r, Vec::kLanes), bounded(rows.end - r, Vec::kLanes)});
  };
  // Every row sees keys [last.begin, first.end); with a short window there are none.
  std::int64_t c = first.begin;
  for (; c < last.begin && c < last.end; ++c) some(c);
  for (; c < first.end; ++c) body(c, AllLanes{});
  for (; c < last.end; ++c) some(c);
}

/// Stores 0 for the keys that none of rows [r, r + lanes) sees.
void clear_unseen(const AttentionBlock& block, std::int64_t r, float* matrix_CR, std::int64_t stride) {
  const std::int64_t last_row = r + Vec::kLanes <= block.R ? r + Vec::kLanes - 1 : block.R - 1;
  const std::int64_t begin = keys_seen_by(block, r).begin, end = keys_seen_by(block, last_row).end;
  for (std::int64_t c = 0; c < begin; ++c) store(matrix_CR + c * stride + r, set(0));
  for (std::int64_t c = end; c < block.C; ++c) store(matrix_CR + c * stride + r, set(0));
}

void attention_weights(const AttentionWeights& args) {
  for (std::int64_t r = 0; r < args.block.R; r += Vec::kLanes) {
    float* weights = args.weights_CR + r;
    const Vec old_top = load(args.top_R + r);
    Vec top = old_top, total = set(0);
    for_each_seen_key(args.block, r, [&](std::int64_t c, auto seen) {
      top = max(top, only(load(weights + c * args.stride), seen, top));
    });
    for_each_seen_key(args.block, r, [&](std::int64_t c, auto seen) {
      const Vec weight = only(exp(load(weights + c * args.stride) - top), seen, set(0));
      store(weights + c * args.stride, weight);
      total = total + weight;
    });
    clear_unseen(args.block, r, args.weights_CR, args.stride);
    const Vec factor = exp(old_top - top);
    store(args.top_R + r, top);
    store(args.sum_R + r, multiply_add(load(args.sum_R + r), factor, total));
    store(args.factor_R + r, factor);
  }
}

void attention_slopes(const AttentionSlopes& args) {
  for (std::int64_t r = 0; r < args.block.R; r += Vec::kLanes) {
    float *weights = args.weights_CR + r, *slopes = args.slopes_CR + r;
    const Vec log_sum_exp = load(args.log_sum_exp_R + r), delta = load(args.delta_R + r);
    for_each_seen_key(args.block, r, [&](std::int64_t c, auto seen) {
      const Vec weight = exp(load(weights + c * args.stride) - log_sum_exp);
      const Vec slope = weight * (load(slopes + c * args.stride) - delta);
      store(weights + c * args.stride, only(weight, seen, set(0)));
      store(slopes + c * args.stride, only(slope, seen, set(0)));
    });
    clear_unseen(args.block, r, args.weights_CR, args.stride);
    clear_unseen(args.block, r, args.slopes_CR, args.stride);
  }
}

}  // namespace
}  // namespace dagmoe
