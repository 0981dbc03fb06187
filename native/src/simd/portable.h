// Sixteen lanes in plain C++, for every CPU without kernels of its own. Slow, and the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define MATRYO_INLINE inline __attribute__((always_inline))

namespace matryo {
namespace {

constexpr int kTileRows = 2;    // rows of one tile of a product
constexpr int kByteRows = 2;    // likewise, of a product of bytes
constexpr int kWordRows = 2;    // likewise, of a product of 16-bit numbers in attention
constexpr int kTilePanels = 1;  // panels of sixteen columns of one tile
constexpr int kByteShift = 0;   // dot8 takes bytes without a sign

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};

#define MATRYO_EACH(type, expression)                 \
  type r;                                             \
  for (int i = 0; i < 16; i++) r.v[i] = (expression); \
  return r

MATRYO_INLINE F load(const float* p) { MATRYO_EACH(F, p[i]); }
MATRYO_INLINE I load(const int32_t* p) { MATRYO_EACH(I, p[i]); }
MATRYO_INLINE void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
MATRYO_INLINE void store(int32_t* p, I x) { std::memcpy(p, x.v, sizeof x.v); }
MATRYO_INLINE F splat(float x) { MATRYO_EACH(F, x); }
MATRYO_INLINE I splat(int32_t x) { MATRYO_EACH(I, x); }

MATRYO_INLINE F add(F x, F y) { MATRYO_EACH(F, x.v[i] + y.v[i]); }
MATRYO_INLINE F sub(F x, F y) { MATRYO_EACH(F, x.v[i] - y.v[i]); }
MATRYO_INLINE F mul(F x, F y) { MATRYO_EACH(F, x.v[i] * y.v[i]); }
MATRYO_INLINE F div(F x, F y) { MATRYO_EACH(F, x.v[i] / y.v[i]); }
MATRYO_INLINE F max(F x, F y) { MATRYO_EACH(F, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
MATRYO_INLINE F min(F x, F y) { MATRYO_EACH(F, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
MATRYO_INLINE F fma(F x, F y, F z) { MATRYO_EACH(F, std::fma(x.v[i], y.v[i], z.v[i])); }
MATRYO_INLINE F nearest(F x) { MATRYO_EACH(F, std::nearbyintf(x.v[i])); }
MATRYO_INLINE F abs(F x) { MATRYO_EACH(F, std::fabs(x.v[i])); }
MATRYO_INLINE F with_sign(F x, F sign) { MATRYO_EACH(F, std::copysign(x.v[i], sign.v[i])); }
MATRYO_INLINE I to_int(F x) { MATRYO_EACH(I, (int32_t)std::nearbyintf(x.v[i])); }
MATRYO_INLINE F to_float(I x) { MATRYO_EACH(F, (float)x.v[i]); }
MATRYO_INLINE I add(I x, I y) { MATRYO_EACH(I, x.v[i] + y.v[i]); }
MATRYO_INLINE I sub(I x, I y) { MATRYO_EACH(I, x.v[i] - y.v[i]); }
MATRYO_INLINE I max(I x, I y) { MATRYO_EACH(I, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
MATRYO_INLINE I mul(I x, I y) { MATRYO_EACH(I, x.v[i] * y.v[i]); }
MATRYO_INLINE F scaled(F x, I power) { MATRYO_EACH(F, std::ldexp(x.v[i], power.v[i])); }

MATRYO_INLINE void store_bytes(uint8_t* p, I x) {
  for (int i = 0; i < 16; i++) p[i] = (uint8_t)x.v[i];
}
MATRYO_INLINE void store_words(int16_t* p, I x) {
  for (int i = 0; i < 16; i++) p[i] = (int16_t)x.v[i];
}

// Halves are folded in the order of every other CPU; see avx2.h.
MATRYO_INLINE float sum(F x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
  return x.v[0];
}
MATRYO_INLINE float largest(F x) {
  for (int i = 1; i < 16; i++) x.v[0] = x.v[i] > x.v[0] ? x.v[i] : x.v[0];
  return x.v[0];
}
MATRYO_INLINE int32_t largest(I x) {
  for (int i = 1; i < 16; i++) x.v[0] = x.v[i] > x.v[0] ? x.v[i] : x.v[0];
  return x.v[0];
}

struct Bytes {
  int8_t v[64];
};
struct Words {
  int16_t v[32];
};

MATRYO_INLINE Bytes load_bytes(const int8_t* p) {
  Bytes r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
MATRYO_INLINE Words load_words(const int8_t* p) {
  Words r;
  for (int i = 0; i < 32; i++) r.v[i] = p[i];
  return r;
}
MATRYO_INLINE Words load_words(const int16_t* p) {
  Words r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}

MATRYO_INLINE I dot8(I sum, const uint8_t* x, const Bytes& w, const Bytes& next) {
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 4; k++) {
      sum.v[i] += (int32_t)x[k] * w.v[4 * i + k] + (int32_t)x[4 + k] * next.v[4 * i + k];
    }
  return sum;
}
MATRYO_INLINE I dot2(I sum, const int16_t* x, const Words& w) {
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 2; k++) sum.v[i] += (int32_t)x[k] * w.v[2 * i + k];
  return sum;
}

#undef MATRYO_EACH

}  // namespace
}  // namespace matryo
