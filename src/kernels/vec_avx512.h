#pragma once

// g++ 12 takes its own "undefined" start values in immintrin.h for our mistake (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>

#include "kernels/element.h"

// Sixteen floats, for kernels_avx512.cpp only. Everything has internal linkage: see simd_kernels.h.

namespace dagmoe {
namespace {

struct Vec {
  static constexpr std::int64_t kLanes = 16;
  __m512 lanes;
};
/// Which lanes a load or store touches.
using Mask = __mmask16;

inline Mask first_lanes(std::int64_t count) { return static_cast<Mask>((1U << count) - 1U); }

inline Vec set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
/// a * b + c, rounded once.
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
/// The second operand where either is NaN.
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
inline Vec round_to_integer(Vec a) {
  return {_mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// a * 2^n for whole n; overflows to infinity and underflows through the subnormal numbers to 0.
inline Vec scale_by_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.lanes, n.lanes)}; }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.lanes); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.lanes); }

inline Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.lanes)}; }
inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.lanes)}; }
/// `magnitude`, at least 0, with the sign of `sign`.
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  return {_mm512_or_ps(magnitude.lanes, _mm512_and_ps(_mm512_set1_ps(-0.0F), sign.lanes))};
}
/// 1 where a > b, 0 elsewhere.
inline Vec above(Vec a, Vec b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_GT_OQ), _mm512_set1_ps(1))};
}
/// The entries of a table of eight; only the last three bits of the whole number `index` count.
inline Vec lookup(const float* table_8, Vec index) {
  const __m512 table = _mm512_broadcast_f32x8(_mm256_loadu_ps(table_8));
  return {_mm512_permutexvar_ps(_mm512_cvtps_epi32(index.lanes), table)};
}
/// a = fraction * 2^exponent for normal a > 0, 1 <= fraction < 2.
inline Vec binary_exponent(Vec a) { return {_mm512_getexp_ps(a.lanes)}; }
inline Vec binary_fraction(Vec a) { return {_mm512_getmant_ps(a.lanes, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero)}; }

/// `a` in the lanes of the mask, `rest` in the others.
inline Vec keep(Vec a, Mask mask, Vec rest) { return {_mm512_mask_blend_ps(mask, rest.lanes, a.lanes)}; }
inline Vec load(const float* from, Mask mask) { return {_mm512_maskz_loadu_ps(mask, from)}; }
inline void store(float* to, Vec a, Mask mask) { _mm512_mask_storeu_ps(to, mask, a.lanes); }
inline Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Vec a) { _mm512_storeu_ps(to, a.lanes); }

inline Vec widen(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
/// To nearest, ties to even; a NaN keeps its upper bits and becomes quiet.
inline __m256i narrow(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.lanes);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const Mask is_nan = _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16));
}
// Whole numbers from 0 to 255.
inline Vec load(const std::uint8_t* from, Mask mask) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from)))};
}
inline void store(std::uint8_t* to, Vec a, Mask mask) {
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.lanes)));
}
inline Vec load(const std::uint8_t* from) { return load(from, static_cast<Mask>(0xffff)); }
inline void store(std::uint8_t* to, Vec a) { store(to, a, static_cast<Mask>(0xffff)); }

inline Vec load(const Bf16* from, Mask mask) { return widen(_mm256_maskz_loadu_epi16(mask, from)); }
inline void store(Bf16* to, Vec a, Mask mask) { _mm256_mask_storeu_epi16(to, mask, narrow(a)); }
inline Vec load(const Bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(Bf16* to, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(a)); }

}  // namespace
}  // namespace dagmoe
