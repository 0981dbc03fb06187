// AVX-512 for tests on a CPU with AVX2: SIMDe's functions, and those that SIMDe 0.7.4 lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace emulated {

union Lanes {
  __m512 floats;
  __m512i integers;
  __m256 float_halves[2];
  __m256i integer_halves[2];
  int lanes[16];
};

inline __m512i cvtps_epi32(__m512 x) {
  Lanes from, to;
  from.floats = x;
  for (int i = 0; i < 2; i++) to.integer_halves[i] = _mm256_cvtps_epi32(from.float_halves[i]);
  return to.integers;
}
inline __m512 cvtepi32_ps(__m512i x) {
  Lanes from, to;
  from.integers = x;
  for (int i = 0; i < 2; i++) to.float_halves[i] = _mm256_cvtepi32_ps(from.integer_halves[i]);
  return to.floats;
}
inline __m128i cvtepi32_epi8(__m512i x) {
  Lanes from;
  from.integers = x;
  alignas(16) signed char to[16];
  for (int i = 0; i < 16; i++) to[i] = (signed char)from.lanes[i];
  return _mm_load_si128((const __m128i*)to);
}
inline __m256i cvtepi32_epi16(__m512i x) {
  Lanes from;
  from.integers = x;
  alignas(32) short to[16];
  for (int i = 0; i < 16; i++) to[i] = (short)from.lanes[i];
  return _mm256_load_si256((const __m256i*)to);
}
inline __m256 extractf32x8_ps(__m512 x, int half) {
  Lanes from;
  from.floats = x;
  return from.float_halves[half];
}

}  // namespace emulated

#undef _mm512_cvtps_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepi32_epi8
#undef _mm512_cvtepi32_epi16
#undef _mm512_extractf32x8_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
