// Sixteen lanes on 64-bit ARM with the dot-product extension: four registers of four lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define MATRYO_INLINE inline __attribute__((always_inline))

namespace matryo {
namespace {

constexpr int kTileRows = 5;     // rows of one tile of a product
constexpr int kByteRows = 5;     // likewise, of a product of bytes
constexpr int kWordRows = 5;     // likewise, of a product of 16-bit numbers in attention
constexpr int kTilePanels = 1;   // panels of sixteen columns of one tile
constexpr int kByteShift = 128;  // dot8 takes signed bytes: 128 less than those of other CPUs

struct F {
  float32x4_t v[4];
};
struct I {
  int32x4_t v[4];
};

#define MATRYO_EACH(type, expression)              \
  type r;                                          \
  for (int i = 0; i < 4; i++) r.v[i] = expression; \
  return r

MATRYO_INLINE F load(const float* p) { MATRYO_EACH(F, vld1q_f32(p + 4 * i)); }
MATRYO_INLINE I load(const int32_t* p) { MATRYO_EACH(I, vld1q_s32(p + 4 * i)); }
MATRYO_INLINE void store(float* p, F x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
MATRYO_INLINE void store(int32_t* p, I x) {
  for (int i = 0; i < 4; i++) vst1q_s32(p + 4 * i, x.v[i]);
}
MATRYO_INLINE F splat(float x) { MATRYO_EACH(F, vdupq_n_f32(x)); }
MATRYO_INLINE I splat(int32_t x) { MATRYO_EACH(I, vdupq_n_s32(x)); }

MATRYO_INLINE F add(F x, F y) { MATRYO_EACH(F, vaddq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F sub(F x, F y) { MATRYO_EACH(F, vsubq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F mul(F x, F y) { MATRYO_EACH(F, vmulq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F div(F x, F y) { MATRYO_EACH(F, vdivq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F max(F x, F y) { MATRYO_EACH(F, vmaxq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F min(F x, F y) { MATRYO_EACH(F, vminq_f32(x.v[i], y.v[i])); }
MATRYO_INLINE F fma(F x, F y, F z) { MATRYO_EACH(F, vfmaq_f32(z.v[i], x.v[i], y.v[i])); }
MATRYO_INLINE F nearest(F x) { MATRYO_EACH(F, vrndnq_f32(x.v[i])); }
MATRYO_INLINE F abs(F x) { MATRYO_EACH(F, vabsq_f32(x.v[i])); }
MATRYO_INLINE F with_sign(F x, F sign) {
  const uint32x4_t bit = vdupq_n_u32(0x80000000u);
  MATRYO_EACH(F, vbslq_f32(bit, sign.v[i], x.v[i]));
}
MATRYO_INLINE I to_int(F x) { MATRYO_EACH(I, vcvtnq_s32_f32(x.v[i])); }
MATRYO_INLINE F to_float(I x) { MATRYO_EACH(F, vcvtq_f32_s32(x.v[i])); }
MATRYO_INLINE I add(I x, I y) { MATRYO_EACH(I, vaddq_s32(x.v[i], y.v[i])); }
MATRYO_INLINE I sub(I x, I y) { MATRYO_EACH(I, vsubq_s32(x.v[i], y.v[i])); }
MATRYO_INLINE I max(I x, I y) { MATRYO_EACH(I, vmaxq_s32(x.v[i], y.v[i])); }
MATRYO_INLINE I mul(I x, I y) { MATRYO_EACH(I, vmulq_s32(x.v[i], y.v[i])); }
MATRYO_INLINE F scaled(F x, I power) {
  MATRYO_EACH(F, vreinterpretq_f32_s32(
                     vaddq_s32(vreinterpretq_s32_f32(x.v[i]), vshlq_n_s32(power.v[i], 23))));
}

MATRYO_INLINE void store_bytes(uint8_t* p, I x) {
  const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
  vst1q_s8((int8_t*)p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
MATRYO_INLINE void store_words(int16_t* p, I x) {
  vst1q_s16(p, vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1])));
  vst1q_s16(p + 8, vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3])));
}

// Halves are folded in the order of every other CPU; see avx2.h.
MATRYO_INLINE float sum(F x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
MATRYO_INLINE float largest(F x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
MATRYO_INLINE int32_t largest(I x) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.v[0], x.v[2]), vmaxq_s32(x.v[1], x.v[3])));
}

struct Bytes {
  int8x16_t v[4];
};
struct Words {
  int16x8_t v[4];
};

MATRYO_INLINE Bytes load_bytes(const int8_t* p) { MATRYO_EACH(Bytes, vld1q_s8(p + 16 * i)); }
MATRYO_INLINE Words load_words(const int8_t* p) {
  MATRYO_EACH(Words, vmovl_s8(vld1_s8(p + 8 * i)));
}
MATRYO_INLINE Words load_words(const int16_t* p) { MATRYO_EACH(Words, vld1q_s16(p + 8 * i)); }

MATRYO_INLINE I dot8(I sum, const uint8_t* x, Bytes w, Bytes next) {
  int32_t four[2];
  std::memcpy(four, x, 8);
  const int8x16_t now = vreinterpretq_s8_s32(vdupq_n_s32(four[0]));
  const int8x16_t then = vreinterpretq_s8_s32(vdupq_n_s32(four[1]));
  MATRYO_EACH(I, vdotq_s32(vdotq_s32(sum.v[i], w.v[i], now), next.v[i], then));
}
MATRYO_INLINE I dot2(I sum, const int16_t* x, Words w) {
  int32_t two;
  std::memcpy(&two, x, 4);
  const int16x8_t values = vreinterpretq_s16_s32(vdupq_n_s32(two));
  MATRYO_EACH(I,
              vaddq_s32(sum.v[i], vpaddq_s32(vmull_s16(vget_low_s16(w.v[i]), vget_low_s16(values)),
                                             vmull_high_s16(w.v[i], values))));
}

#undef MATRYO_EACH

}  // namespace
}  // namespace matryo
