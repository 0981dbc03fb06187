// Sixteen lanes on AVX-512 with VNNI: one register.
#pragma once

#ifdef MATRYO_EMULATE_AVX512
#include "avx512_emulated.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#define MATRYO_INLINE inline __attribute__((always_inline))

namespace matryo {
namespace {

constexpr int kTileRows = 12;   // rows of one tile of a product
constexpr int kByteRows = 12;   // likewise, of a product of bytes
constexpr int kWordRows = 12;   // likewise, of a product of 16-bit numbers in attention
constexpr int kTilePanels = 2;  // panels of sixteen columns of one tile
constexpr int kByteShift = 0;   // dot8 takes bytes without a sign

using F = __m512;
using I = __m512i;

MATRYO_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
MATRYO_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
MATRYO_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
MATRYO_INLINE void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
MATRYO_INLINE F splat(float x) { return _mm512_set1_ps(x); }
MATRYO_INLINE I splat(int32_t x) { return _mm512_set1_epi32(x); }

MATRYO_INLINE F add(F x, F y) { return _mm512_add_ps(x, y); }
MATRYO_INLINE F sub(F x, F y) { return _mm512_sub_ps(x, y); }
MATRYO_INLINE F mul(F x, F y) { return _mm512_mul_ps(x, y); }
MATRYO_INLINE F div(F x, F y) { return _mm512_div_ps(x, y); }
MATRYO_INLINE F max(F x, F y) { return _mm512_max_ps(x, y); }
MATRYO_INLINE F min(F x, F y) { return _mm512_min_ps(x, y); }
MATRYO_INLINE F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
MATRYO_INLINE F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
MATRYO_INLINE F abs(F x) { return _mm512_abs_ps(x); }
MATRYO_INLINE F with_sign(F x, F sign) {
  const I bit = _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(INT32_MIN));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(x), bit));
}
MATRYO_INLINE I to_int(F x) { return _mm512_cvtps_epi32(x); }
MATRYO_INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
MATRYO_INLINE I add(I x, I y) { return _mm512_add_epi32(x, y); }
MATRYO_INLINE I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
MATRYO_INLINE I max(I x, I y) { return _mm512_max_epi32(x, y); }
MATRYO_INLINE I mul(I x, I y) { return _mm512_mullo_epi32(x, y); }
MATRYO_INLINE F scaled(F x, I power) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(power, 23)));
}

MATRYO_INLINE void store_bytes(uint8_t* p, I x) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
}
MATRYO_INLINE void store_words(int16_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x));
}

// Halves are folded in the order of every other CPU; see avx2.h.
MATRYO_INLINE float sum(F x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
MATRYO_INLINE float largest(F x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
MATRYO_INLINE int32_t largest(I x) {
  const __m256i eight =
      _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

using Bytes = __m512i;
using Words = __m512i;

MATRYO_INLINE Bytes load_bytes(const int8_t* p) { return _mm512_loadu_si512(p); }
MATRYO_INLINE Words load_words(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}
MATRYO_INLINE Words load_words(const int16_t* p) { return _mm512_loadu_si512(p); }

MATRYO_INLINE I dot8(I sum, const uint8_t* x, Bytes w, Bytes next) {
  int32_t four[2];
  std::memcpy(four, x, 8);
  sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four[0]), w);
  return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four[1]), next);
}
MATRYO_INLINE I dot2(I sum, const int16_t* x, Words w) {
  int32_t two;
  std::memcpy(&two, x, 4);
  return _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(two), w);
}

}  // namespace
}  // namespace matryo
