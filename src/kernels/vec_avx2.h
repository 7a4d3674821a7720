#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/element.h"

// Eight floats, for kernels_avx2.cpp only. Everything has internal linkage: see simd_kernels.h.

namespace dagmoe {
namespace {

struct Vec {
  static constexpr std::int64_t kLanes = 8;
  __m256 lanes;
};
/// How many lanes, from the first, a load or store touches.
struct Mask {
  std::int64_t count;
};

inline Mask first_lanes(std::int64_t count) { return {count}; }

inline Vec set(float x) { return {_mm256_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
/// a * b + c, rounded once.
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
/// The second operand where either is NaN.
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
inline Vec round_to_integer(Vec a) { return {_mm256_round_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec power_of_two(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.lanes), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
/// a * 2^n for whole n from -252 to 254; overflows to infinity and underflows through the subnormal numbers to 0.
inline Vec scale_by_power_of_two(Vec a, Vec n) {
  // In two steps, because a single factor of 2^128 or 2^-149 does not exist.
  const Vec half = {_mm256_floor_ps(_mm256_mul_ps(n.lanes, _mm256_set1_ps(0.5F)))};
  return a * power_of_two(half) * power_of_two(n - half);
}
inline float sum(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.lanes)}; }
inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), a.lanes)}; }
/// `magnitude`, at least 0, with the sign of `sign`.
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  return {_mm256_or_ps(magnitude.lanes, _mm256_and_ps(_mm256_set1_ps(-0.0F), sign.lanes))};
}
/// 1 where a > b, 0 elsewhere.
inline Vec above(Vec a, Vec b) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.lanes, b.lanes, _CMP_GT_OQ), _mm256_set1_ps(1))};
}
/// The entries of a table of eight; only the last three bits of the whole number `index` count.
inline Vec lookup(const float* table_8, Vec index) {
  return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(table_8), _mm256_cvtps_epi32(index.lanes))};
}
/// a = fraction * 2^exponent for normal a > 0, 1 <= fraction < 2.
inline Vec binary_exponent(Vec a) {
  const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(a.lanes), 23);
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)))};
}
inline Vec binary_fraction(Vec a) {
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(a.lanes), _mm256_set1_epi32(0x007fffff));
  return {_mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x3f800000)))};
}

inline __m256i lane_mask(Mask mask) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(mask.count)), index);
}
/// `a` in the lanes of the mask, `rest` in the others.
inline Vec keep(Vec a, Mask mask, Vec rest) {
  return {_mm256_blendv_ps(rest.lanes, a.lanes, _mm256_castsi256_ps(lane_mask(mask)))};
}
inline Vec load(const float* from, Mask mask) { return {_mm256_maskload_ps(from, lane_mask(mask))}; }
inline void store(float* to, Vec a, Mask mask) { _mm256_maskstore_ps(to, lane_mask(mask), a.lanes); }
inline Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline void store(float* to, Vec a) { _mm256_storeu_ps(to, a.lanes); }

inline Vec widen(__m128i bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))}; }
/// To nearest, ties to even; a NaN keeps its upper bits and becomes quiet.
inline __m128i narrow(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  // Packs within each half, so the two middle quarters change places afterwards.
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0xd8);
  return _mm256_castsi256_si128(packed);
}
inline Vec load(const Bf16* from) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline void store(Bf16* to, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(a)); }
// Whole numbers from 0 to 255.
inline Vec load(const std::uint8_t* from) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
}
inline void store(std::uint8_t* to, Vec a) {
  const __m256i whole = _mm256_cvtps_epi32(a.lanes);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
inline Vec load(const std::uint8_t* from, Mask mask) {
  std::uint8_t buffer[Vec::kLanes] = {};
  for (std::int64_t i = 0; i < mask.count; ++i) buffer[i] = from[i];
  return load(buffer);
}
inline void store(std::uint8_t* to, Vec a, Mask mask) {
  std::uint8_t buffer[Vec::kLanes];
  store(buffer, a);
  for (std::int64_t i = 0; i < mask.count; ++i) to[i] = buffer[i];
}
// AVX2 has no masked 16-bit access.
inline Vec load(const Bf16* from, Mask mask) {
  Bf16 buffer[Vec::kLanes] = {};
  for (std::int64_t i = 0; i < mask.count; ++i) buffer[i] = from[i];
  return load(buffer);
}
inline void store(Bf16* to, Vec a, Mask mask) {
  Bf16 buffer[Vec::kLanes];
  store(buffer, a);
  for (std::int64_t i = 0; i < mask.count; ++i) to[i] = buffer[i];
}

}  // namespace
}  // namespace dagmoe
