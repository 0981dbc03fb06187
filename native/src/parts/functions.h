// Elementary functions, and lanes at the end of a row. kernels.inc.h includes this file.
#pragma once

namespace matryo {
namespace {

// 2^x for x up to 127. Below -126 the result is 2^-126, and NaN gives NaN. Series of 2^f about 0,
// |f| <= 1/2: the relative error is below 2e-8 before rounding.
MATRYO_INLINE F exp2(F x) {
  x = max(splat(-126.0f), x);
  const F whole = nearest(x), f = sub(x, whole);
  F r = splat(1.525273380405984e-5f);
  r = fma(r, f, splat(1.540353039338161e-4f));
  r = fma(r, f, splat(1.333355814642844e-3f));
  r = fma(r, f, splat(9.618129107628477e-3f));
  r = fma(r, f, splat(5.550410866482158e-2f));
  r = fma(r, f, splat(2.402265069591007e-1f));
  r = fma(r, f, splat(6.931471805599453e-1f));
  r = fma(r, f, splat(1.0f));
  return scaled(r, to_int(whole));
}

// The same with a relative error below 3e-6, for results that are rounded to 14 bits.
MATRYO_INLINE F exp2_coarse(F x) {
  x = max(splat(-126.0f), x);
  const F whole = nearest(x), f = sub(x, whole);
  F r = splat(1.333355814642844e-3f);
  r = fma(r, f, splat(9.618129107628477e-3f));
  r = fma(r, f, splat(5.550410866482158e-2f));
  r = fma(r, f, splat(2.402265069591007e-1f));
  r = fma(r, f, splat(6.931471805599453e-1f));
  r = fma(r, f, splat(1.0f));
  return scaled(r, to_int(whole));
}

constexpr float kLog2E = 1.4426950408889634f;

MATRYO_INLINE F silu(F x) {
  const F power = exp2(min(mul(x, splat(-kLog2E)), splat(126.0f)));
  return div(x, add(splat(1.0f), power));
}

// erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: 1.5e-7 at most.
MATRYO_INLINE F gelu(F x) {
  const F z = abs(mul(x, splat(0.70710678118654752f)));
  const F t = div(splat(1.0f), fma(z, splat(0.3275911f), splat(1.0f)));
  F r = splat(1.061405429f);
  r = fma(r, t, splat(-1.453152027f));
  r = fma(r, t, splat(1.421413741f));
  r = fma(r, t, splat(-0.284496736f));
  r = fma(r, t, splat(0.254829592f));
  r = mul(r, t);
  const F tail = mul(r, exp2(mul(mul(z, z), splat(-kLog2E))));
  const F erf = with_sign(sub(splat(1.0f), tail), x);
  return mul(mul(x, splat(0.5f)), add(splat(1.0f), erf));
}

// --- lanes at the end of a row

MATRYO_INLINE F load_some(const float* p, int64_t n, float fill) {
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; i++) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}
MATRYO_INLINE F load_upto(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : load_some(p, n, 0.0f);
}
MATRYO_INLINE void store_upto(float* p, F x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

// Adds 0 for each finite entry, and NaN for each other one. A maximum may lose NaN, a sum does not.
MATRYO_INLINE F add_faults(F x, F sum) { return fma(x, splat(0.0f), sum); }

// The first n lanes, and 0 in the others.
template <class T, class V>
MATRYO_INLINE V first_lanes(V x, int64_t n) {
  alignas(64) T lanes[kLanes];
  store(lanes, x);
  for (int64_t i = n; i < kLanes; i++) lanes[i] = 0;
  return load(lanes);
}

}  // namespace
}  // namespace matryo
