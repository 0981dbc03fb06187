// Sixteen lanes on AVX2 with FMA: two registers of eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define MATRYO_INLINE inline __attribute__((always_inline))

namespace matryo {
namespace {

constexpr int kTileRows = 6;    // rows of one tile of a product
constexpr int kByteRows = 4;    // likewise, of a product of bytes
constexpr int kWordRows = 4;    // likewise, of a product of 16-bit numbers in attention
constexpr int kTilePanels = 1;  // panels of sixteen columns of one tile
constexpr int kByteShift = 0;   // dot8 takes bytes without a sign

struct F {
  __m256 a, b;
};

struct I {
  __m256i a, b;
};

MATRYO_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MATRYO_INLINE I load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
MATRYO_INLINE void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
MATRYO_INLINE void store(int32_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
MATRYO_INLINE F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
MATRYO_INLINE I splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

MATRYO_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MATRYO_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MATRYO_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MATRYO_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
MATRYO_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
MATRYO_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
MATRYO_INLINE F fma(F x, F y, F z) {  // x * y + z, rounded once
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
MATRYO_INLINE F nearest(F x) {  // to an integer, halves to even
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
MATRYO_INLINE F abs(F x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
MATRYO_INLINE F with_sign(F x, F sign) {  // |x| is x; the sign bit is that of sign
  const __m256 bit = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  return {_mm256_or_ps(x.a, _mm256_and_ps(sign.a, bit)),
          _mm256_or_ps(x.b, _mm256_and_ps(sign.b, bit))};
}
MATRYO_INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
MATRYO_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
MATRYO_INLINE I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
MATRYO_INLINE I sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
MATRYO_INLINE I max(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
MATRYO_INLINE I mul(I x, I y) {
  return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
}
MATRYO_INLINE F scaled(F x, I power) {  // x * 2^power
  return {_mm256_castsi256_ps(
              _mm256_add_epi32(_mm256_castps_si256(x.a), _mm256_slli_epi32(power.a, 23))),
          _mm256_castsi256_ps(
              _mm256_add_epi32(_mm256_castps_si256(x.b), _mm256_slli_epi32(power.b, 23)))};
}

MATRYO_INLINE void store_bytes(uint8_t* p, I x) {  // values of 0 to 255
  __m256i words = _mm256_packus_epi32(x.a, x.b);
  words = _mm256_permute4x64_epi64(words, 0xd8);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x88);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(bytes));
}
MATRYO_INLINE void store_words(int16_t* p, I x) {
  const __m256i words = _mm256_packs_epi32(x.a, x.b);
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(words, 0xd8));
}

// The sums and the largest of lanes fold halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1. Every CPU adds in
// this order, so that all give the same bits.
MATRYO_INLINE float sum(F x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
MATRYO_INLINE float largest(F x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
MATRYO_INLINE int32_t largest(I x) {
  const __m256i eight = _mm256_max_epi32(x.a, x.b);
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// --- products: each lane adds the products of a few neighbours along the depth

struct Bytes {  // sixteen columns, four neighbours of each
  __m256i a, b;
};
struct Words {  // sixteen columns, two neighbours of each
  __m256i a, b;
};

MATRYO_INLINE Bytes load_bytes(const int8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
MATRYO_INLINE Words load_words(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
MATRYO_INLINE Words load_words(const int16_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}

// VPMADDUBSW adds two products in sixteen bits, and two such sums are added in sixteen bits too.
// The weights are rounded so that the sum fits (matryo.build.precision.quantize).
MATRYO_INLINE __m256i four_products(__m256i x, __m256i w, __m256i next_x, __m256i next_w) {
  return _mm256_add_epi16(_mm256_maddubs_epi16(x, w), _mm256_maddubs_epi16(next_x, next_w));
}
MATRYO_INLINE I dot8(I sum, const uint8_t* x, Bytes w, Bytes next) {
  int32_t four[2];
  std::memcpy(four, x, 8);
  const __m256i now = _mm256_set1_epi32(four[0]), then = _mm256_set1_epi32(four[1]);
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(four_products(now, w.a, then, next.a), ones)),
          _mm256_add_epi32(sum.b, _mm256_madd_epi16(four_products(now, w.b, then, next.b), ones))};
}
MATRYO_INLINE I dot2(I sum, const int16_t* x, Words w) {
  int32_t two;
  std::memcpy(&two, x, 4);
  const __m256i values = _mm256_set1_epi32(two);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(values, w.a)),
          _mm256_add_epi32(sum.b, _mm256_madd_epi16(values, w.b))};
}

}  // namespace
}  // namespace matryo
