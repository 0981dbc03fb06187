// The kernels, over sixteen lanes. Each CPU class compiles this file for itself, after its header
// in simd/, and defines MATRYO_KERNELS, the name of its table.
//
// Everything is in an unnamed namespace, and nothing of the standard library is called: the linker
// would merge equal functions of two classes, and an older CPU would run the newer one's code.

#include "kernels.h"

#define MATRYO_UNROLL _Pragma("GCC unroll 16")

namespace matryo {
namespace {

// --- elementary functions

// 2^x for x up to 127; below -126 the result is 2^-126. Series of 2^f about 0, |f| <= 1/2: the
// relative error is below 2e-8 before rounding.
MATRYO_INLINE F exp2(F x) {
  x = max(x, splat(-126.0f));
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
  x = max(x, splat(-126.0f));
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

// --- products of a tile

struct ByteDot {
  using X = uint8_t;
  using W = int8_t;
  using Sum = I;
  using Out = int32_t;
  static constexpr int64_t kDepth = 8;
  static constexpr int kRows = kByteRows;
  struct Column {
    Bytes now, next;
  };
  static MATRYO_INLINE Column weights(const W* p) { return {load_bytes(p), load_bytes(p + 4 * kLanes)}; }
  static MATRYO_INLINE Sum step(Sum sum, const X* x, const Column& w) { return dot8(sum, x, w.now, w.next); }
};

template <class Weight>
struct WordDot {
  using X = int16_t;
  using W = Weight;
  using Sum = I;
  using Out = int32_t;
  static constexpr int64_t kDepth = 2;
  static constexpr int kRows = sizeof(Weight) == 1 ? kTileRows : kWordRows;
  static MATRYO_INLINE auto weights(const W* p) { return load_words(p); }
  template <class V>
  static MATRYO_INLINE Sum step(Sum sum, const X* x, const V& w) { return dot2(sum, x, w); }
};

struct FloatDot {
  using X = float;
  using W = float;
  using Sum = F;
  using Out = float;
  static constexpr int64_t kDepth = 1;
  static constexpr int kRows = kTileRows;
  static MATRYO_INLINE auto weights(const W* p) { return load(p); }
  static MATRYO_INLINE Sum step(Sum sum, const X* x, const F& w) { return fma(splat(*x), w, sum); }
};

// Where the sums of a tile begin and end: `out` itself, and `more` says whether they are added to
// what is there.
template <class D>
struct Plain {
  typename D::Out* out;
  int64_t stride;
  bool more;

  MATRYO_INLINE Plain at(int64_t r, int64_t p) const {
    return {out + r * stride + p * kLanes, stride, more};
  }
  MATRYO_INLINE typename D::Sum begin(int64_t r, int64_t p) const {
    return more ? load(out + r * stride + p * kLanes) : splat(typename D::Out(0));
  }
  MATRYO_INLINE void end(int64_t r, int64_t p, const typename D::Sum& sum) const {
    store(out + r * stride + p * kLanes, sum);
  }
};

// x[R] @ w in panels of sixteen columns; `to` says where sums begin and end. Strides count elements.
template <class D, int R, int P, class To>
inline void tile(const typename D::X* x, int64_t x_stride, const typename D::W* w,
                 int64_t panel_stride, int64_t steps, To to) {
  typename D::Sum sum[R][P];
  MATRYO_UNROLL for (int r = 0; r < R; r++) {
    MATRYO_UNROLL for (int p = 0; p < P; p++) sum[r][p] = to.begin(r, p);
  }
  for (int64_t s = 0; s < steps; s++) {
    decltype(D::weights(w)) column[P];
    MATRYO_UNROLL for (int p = 0; p < P; p++) {
      column[p] = D::weights(w + p * panel_stride + s * kLanes * D::kDepth);
    }
    MATRYO_UNROLL for (int r = 0; r < R; r++) {
      MATRYO_UNROLL for (int p = 0; p < P; p++) {
        sum[r][p] = D::step(sum[r][p], x + r * x_stride + s * D::kDepth, column[p]);
      }
    }
  }
  MATRYO_UNROLL for (int r = 0; r < R; r++) {
    MATRYO_UNROLL for (int p = 0; p < P; p++) to.end(r, p, sum[r][p]);
  }
}

// The same for a number of rows that is known only now.
template <class D, int P, class To, int R = D::kRows>
inline void tile_rows(int64_t rows, const typename D::X* x, int64_t x_stride,
                      const typename D::W* w, int64_t panel_stride, int64_t steps, To to) {
  if constexpr (R > 1) {
    if (rows < R) {
      return tile_rows<D, P, To, R - 1>(rows, x, x_stride, w, panel_stride, steps, to);
    }
  }
  tile<D, R, P>(x, x_stride, w, panel_stride, steps, to);
}

// Any number of rows and panels.
template <class D, class To>
inline void block(int64_t rows, const typename D::X* x, int64_t x_stride, const typename D::W* w,
                  int64_t panel_stride, int64_t panels, int64_t steps, To to) {
  int64_t p = 0;
  for (; p + kTilePanels <= panels; p += kTilePanels) {
    for (int64_t r = 0; r < rows; r += D::kRows) {
      tile_rows<D, kTilePanels>(rows - r, x + r * x_stride, x_stride, w + p * panel_stride,
                                panel_stride, steps, to.at(r, p));
    }
  }
  for (; p < panels; p++) {
    for (int64_t r = 0; r < rows; r += D::kRows) {
      tile_rows<D, 1>(rows - r, x + r * x_stride, x_stride, w + p * panel_stride, panel_stride,
                      steps, to.at(r, p));
    }
  }
}

// --- linear layers

constexpr int64_t kGroupPanels = 2;     // panels whose results are finished together
constexpr int64_t kFloatSteps = 512;    // depth of float weights that stay in the cache

// The largest magnitude of a 16-bit activation: sums of k products with 127 fit in 32 bits.
inline int64_t word_levels(int64_t k) {
  const int64_t most = INT32_MAX / (127 * k);
  return most < INT16_MAX ? most : INT16_MAX;
}

MATRYO_INLINE float at_least(float scale, float least) {  // NaN stays NaN
  return scale < least ? least : scale;
}

// Sixteen entries of a row of activations, times the channels' factors if there are any.
template <bool kChannels>
MATRYO_INLINE F entries(const float* x, const float* channels, int64_t i) {
  if constexpr (kChannels) return mul(load(x + i), load(channels + i));
  return load(x + i);
}

// Rounds `n` entries, a multiple of the lanes, and returns their scale.
template <bool kWords, bool kChannels>
float round_group(const float* x, const float* channels, int64_t n, float of_above,
                  float of_below, float zero_point, uint8_t* values) {
  F high = splat(0.0f), low = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F value = entries<kChannels>(x, channels, i);
    high = max(value, high);
    low = min(value, low);
  }
  const float above = largest(high) * of_above;
  const float below = largest(sub(splat(0.0f), low)) * of_below;
  const float scale = at_least(above > below ? above : below, 1e-20f);
  const F inverse = splat(1.0f / scale), shift = splat(zero_point);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F rounded = nearest(mul(entries<kChannels>(x, channels, i), inverse));
    if constexpr (kWords) {
      store_words((int16_t*)values + i, to_int(rounded));
    } else {
      const F inside = min(max(add(rounded, shift), splat(0.0f)), splat(255.0f));
      store_bytes(values + i, sub(to_int(inside), splat((int32_t)kByteShift)));
    }
  }
  return scale;
}

template <bool kWords, bool kChannels>
void round_rows_as(const Linear& a, int64_t begin, int64_t end, const Rounded& to) {
  const int64_t k = a.k, groups = groups_of(a.numbers, k), group = kWords ? k : kGroup;
  const float of_above = 1.0f / (float)(kWords ? word_levels(k) : 255 - a.zero_point);
  const float of_below = 1.0f / (float)(kWords ? word_levels(k) : a.zero_point);
  const float zero_point = (float)a.zero_point;
  const float* channels = a.channels;
  for (int64_t row = begin; row < end; row++) {
    uint8_t* values = to.values + (row - begin) * to.stride;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * group, n = k - first < group ? k - first : group;
      const float *x = a.x + row * k + first, *factors = kChannels ? channels + first : nullptr;
      uint8_t* at = values + first * (kWords ? 2 : 1);
      float* scale = to.scales + (row - begin) * groups + g;
      if (n % kLanes == 0) {
        *scale = round_group<kWords, kChannels>(x, factors, n, of_above, of_below, zero_point, at);
        continue;
      }
      // Zeros complete a row whose width is no multiple of the lanes.
      alignas(64) float row_end[kMostWidth], factor_end[kMostWidth];
      const int64_t whole = (n + kLanes - 1) / kLanes * kLanes;
      for (int64_t i = 0; i < whole; i++) {
        row_end[i] = i < n ? x[i] : 0.0f;
        factor_end[i] = kChannels && i < n ? factors[i] : 0.0f;
      }
      *scale = round_group<kWords, kChannels>(row_end, factor_end, whole, of_above, of_below,
                                              zero_point, at);
    }
  }
}

void round_rows(const Linear& a, int64_t begin, int64_t end, const Rounded& to) {
  const bool words = a.numbers == Numbers::kWords;
  if (words && a.channels) return round_rows_as<true, true>(a, begin, end, to);
  if (words) return round_rows_as<true, false>(a, begin, end, to);
  if (a.channels) return round_rows_as<false, true>(a, begin, end, to);
  round_rows_as<false, false>(a, begin, end, to);
}

// The products of one group of inputs are added to float totals, times the scales of row and
// column. They begin at minus the zero point times the column's sum of weights.
struct Grouped {
  const int32_t* initial;   // (panels * 16,)
  const float* scales;      // (panels * 16,)
  const float* row_scales;  // of this group, `groups` apart
  int64_t groups;
  float* totals;  // (rows, kGroupPanels * 16)
  bool more;      // than the first group

  MATRYO_INLINE Grouped at(int64_t r, int64_t p) const {
    return {initial + p * kLanes,    scales + p * kLanes,
            row_scales + r * groups, groups,
            totals + (r * kGroupPanels + p) * kLanes, more};
  }
  MATRYO_INLINE I begin(int64_t, int64_t p) const { return load(initial + p * kLanes); }
  MATRYO_INLINE void end(int64_t r, int64_t p, const I& sum) const {
    const F value = mul(to_float(sum), splat(row_scales[r * groups])), scale = load(scales + p * kLanes);
    float* total = totals + (r * kGroupPanels + p) * kLanes;
    store(total, more ? fma(value, scale, load(total)) : mul(value, scale));
  }
};

// Bias, activation and residual of one row, for a group of panels.
inline void finish(const Linear& a, const float* totals, int64_t row, int64_t panel,
                   int64_t panels) {
  F value[kGroupPanels];
  for (int64_t p = 0; p < panels; p++) {
    value[p] = load(totals + p * kLanes);
    if (a.bias) value[p] = add(value[p], load(a.bias + (panel + p) * kLanes));
  }
  int64_t column = panel * kLanes;
  if (a.activation == Activation::kSiluGate || a.activation == Activation::kGeluGate) {
    value[0] = mul(value[0], a.activation == Activation::kSiluGate ? silu(value[1]) : gelu(value[1]));
    column /= 2;
    panels = 1;
  }
  for (int64_t p = 0; p < panels; p++, column += kLanes) {
    if (a.activation == Activation::kGelu) value[p] = gelu(value[p]);
    const int64_t at = row * a.n + column, left = a.n - column;
    if (a.residual) value[p] = add(load_upto(a.residual + at, left), value[p]);
    store_upto(a.y + at, value[p], left);
  }
}

template <class D>
void multiply_as(const Linear& a, int64_t begin, int64_t end, int64_t first, int64_t last,
                 const uint8_t* values, int64_t stride, const float* row_scales) {
  constexpr bool kIsFloat = D::kDepth == 1;
  constexpr int64_t kWidth = kGroupPanels * kLanes;
  const int64_t steps = (a.k + D::kDepth - 1) / D::kDepth;
  const int64_t panel_stride = steps * kLanes * D::kDepth, groups = groups_of(a.numbers, a.k);
  const int64_t most_steps = kIsFloat ? kFloatSteps : groups > 1 ? kGroup / D::kDepth : steps;
  const auto* w = (const typename D::W*)a.weights;
  alignas(64) float totals[kMostBlockRows * kWidth];
  alignas(64) int32_t initial[kWidth] = {};
  for (int64_t block_row = begin; block_row < end; block_row += kMostBlockRows) {
    const int64_t left = end - block_row, rows = left < kMostBlockRows ? left : kMostBlockRows;
    const uint8_t* x = values + (block_row - begin) * stride;
    for (int64_t panel = first; panel < last; panel += kGroupPanels) {
      const int64_t panels = last - panel < kGroupPanels ? last - panel : kGroupPanels;
      for (int64_t step = 0; step < steps; step += most_steps) {
        const int64_t n_steps = steps - step < most_steps ? steps - step : most_steps;
        const int64_t group = step / most_steps, column = (group * a.panels + panel) * kLanes;
        const auto* x_step = (const typename D::X*)x + step * D::kDepth;
        const auto* w_step = w + panel * panel_stride + step * kLanes * D::kDepth;
        const int64_t x_stride = stride / (int64_t)sizeof(typename D::X);
        if constexpr (kIsFloat) {
          const Plain<D> to{totals, kWidth, step > 0};
          block<D>(rows, x_step, x_stride, w_step, panel_stride, panels, n_steps, to);
        } else {
          const I offset = splat((int32_t)kByteShift - a.zero_point);
          for (int64_t p = 0; a.sums && p < panels; p++) {
            store(initial + p * kLanes, mul(offset, load(a.sums + column + p * kLanes)));
          }
          const float* of_rows = row_scales + (block_row - begin) * groups + group;
          const Grouped to{initial, a.scales + column, of_rows, groups, totals, group > 0};
          block<D>(rows, x_step, x_stride, w_step, panel_stride, panels, n_steps, to);
        }
      }
      for (int64_t r = 0; r < rows; r++) {
        finish(a, totals + r * kWidth, block_row + r, panel, panels);
      }
    }
  }
}

void multiply(const Linear& a, int64_t begin, int64_t end, int64_t first, int64_t last,
              const Rounded& from) {
  switch (a.numbers) {
    case Numbers::kBytes:
      return multiply_as<ByteDot>(a, begin, end, first, last, from.values, from.stride,
                                  from.scales);
    case Numbers::kWords:
      return multiply_as<WordDot<int8_t>>(a, begin, end, first, last, from.values, from.stride,
                                          from.scales);
    case Numbers::kFloats:
      return multiply_as<FloatDot>(a, begin, end, first, last, (const uint8_t*)(a.x + begin * a.k),
                                   a.k * (int64_t)sizeof(float), nullptr);
  }
}

// --- attention

// A weight of a key is at most 2^kWeightBits, and a value of a key at most kValueLevels: the sum of
// kKeyBlock products fits in 32 bits.
constexpr float kWeightBits = 14.0f;
constexpr float kValueLevels = 2047.0f;

// The largest magnitude of a query's or key's entry: sums of `size` products fit in 32 bits.
inline float score_levels(int64_t size) {
  return (float)(int64_t)__builtin_sqrt((double)INT32_MAX / (double)size);
}

// One row of one head, rotated by its position if the model does that.
//
// Source: Su et al. 2021, RoFormer, arXiv:2104.09864, in the form of GPT-NeoX: entry i turns with
// entry i + size / 2.
MATRYO_INLINE void rotated(const Attention& a, const float* row, int64_t position, float* out) {
  if (!a.cos) {
    for (int64_t i = 0; i < a.size; i += kLanes) store(out + i, load(row + i));
    return;
  }
  const int64_t half = a.size / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const F c = load(a.cos + position * half + i), s = load(a.sin + position * half + i);
    const F x = load(row + i), y = load(row + half + i);
    store(out + i, sub(mul(x, c), mul(y, s)));
    store(out + half + i, add(mul(y, c), mul(x, s)));
  }
}

inline float largest_of(const float* x, int64_t n) {
  F most = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) most = max(most, abs(load(x + i)));
  return largest(most);
}

inline float scale_of(float most, float levels) {
  const float scale = most / levels;
  return scale > 1e-20f ? scale : (scale != scale ? scale : 1e-20f);
}

// x as integers, `scale` apart.
MATRYO_INLINE void to_words(const float* x, int64_t n, float scale, int16_t* out) {
  const F inverse = splat(1.0f / scale);
  for (int64_t i = 0; i < n; i += kLanes) store_words(out + i, to_int(nearest(mul(load(x + i), inverse))));
}

// Keys: [16 keys][size / depth][16][depth], where depth entries are four bytes.
template <class T>
inline void place_key(const T* key, int64_t size, int64_t token, T* keys) {
  constexpr int64_t kDepth = 4 / (int64_t)sizeof(T);
  char* to = (char*)(keys + token / kLanes * kLanes * size + token % kLanes * kDepth);
  for (int64_t i = 0; i < size / kDepth; i++) {
    __builtin_memcpy(to + i * kLanes * 4, (const char*)key + i * 4, 4);
  }
}

// Values: [64 keys][size / 16][64 / depth][16][depth]. Two tokens come at a time.
inline void place_values(const int16_t* now, const int16_t* next, int64_t size, int64_t token,
                         int16_t* values) {
  const int64_t in_block = token % kKeyBlock;
  int16_t* to = values + token / kKeyBlock * kKeyBlock * size + in_block * kLanes;
  for (int64_t d = 0; d < size; d += kLanes, to += kKeyBlock * kLanes) {
    for (int64_t i = 0; i < kLanes; i++) {
      to[2 * i] = now[d + i];
      to[2 * i + 1] = next[d + i];
    }
  }
}
inline void place_values(const float* now, const float* next, int64_t size, int64_t token,
                         float* values) {
  const int64_t in_block = token % kKeyBlock;
  float* to = values + token / kKeyBlock * kKeyBlock * size + in_block * kLanes;
  for (int64_t d = 0; d < size; d += kLanes, to += kKeyBlock * kLanes) {
    store(to, load(now + d));
    store(to + kLanes, load(next + d));
  }
}

inline void round_to(const float* x, int64_t n, float scale, int16_t* out) {
  to_words(x, n, scale, out);
}
inline void round_to(const float* x, int64_t n, float, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, load(x + i));
}

template <class T>
void pack_keys_as(const Attention& a, int64_t text, int64_t head) {
  const int64_t start = a.starts[text], n = a.starts[text + 1] - start, size = a.size;
  const int64_t at = (a.places[text] * a.heads + head * packed_rows(n)) * size;
  const float* k = a.k + start * a.stride + head * size;
  const float* v = a.v + start * a.stride + head * size;
  T *keys = (T*)a.keys + at, *values = (T*)a.values + at;
  alignas(64) float row[kMostSize];
  alignas(64) T key[kMostSize], value[2][kMostSize];
  float* scales = a.scales + 2 * (text * a.heads + head);
  scales[0] = scales[1] = 1.0f;
  if (!a.floats) {
    float most_key = 0.0f, most_value = 0.0f;
    for (int64_t t = 0; t < n; t++) {
      rotated(a, k + t * a.stride, t, row);
      const float of_key = largest_of(row, size), of_value = largest_of(v + t * a.stride, size);
      if (!(of_key <= most_key)) most_key = of_key;  // NaN too
      if (!(of_value <= most_value)) most_value = of_value;
    }
    scales[0] = scale_of(most_key, score_levels(size));
    scales[1] = scale_of(most_value, kValueLevels);
  }
  const int64_t end = (n + kLanes - 1) / kLanes * kLanes;  // zeros complete the last panel
  for (int64_t t = 0; t < end; t++) {
    T* of_token = value[t % 2];
    if (t < n) {
      rotated(a, k + t * a.stride, t, row);
      round_to(row, size, scales[0], key);
      round_to(v + t * a.stride, size, scales[1], of_token);
    } else {
      for (int64_t i = 0; i < size; i++) key[i] = of_token[i] = 0;
    }
    place_key(key, size, t, keys);
    if (t % 2) place_values(value[0], value[1], size, t - 1, values);
  }
}

void pack_keys(const Attention& a, int64_t text, int64_t head) {
  if (a.floats) return pack_keys_as<float>(a, text, head);
  pack_keys_as<int16_t>(a, text, head);
}

MATRYO_INLINE F as_float(const int32_t* p) { return to_float(load(p)); }
MATRYO_INLINE F as_float(const float* p) { return load(p); }

// What scores are beyond the last key, so that the weights there are 0.
template <class T>
constexpr T kNever = T(-1e30f);
template <>
constexpr int32_t kNever<int32_t> = INT32_MIN;

// Puts kNever after the last key of a block whose number of keys is no multiple of the lanes.
template <class T>
inline void end_scores(T* scores, int64_t rows, int64_t n_keys) {
  const int64_t end = (n_keys + kLanes - 1) / kLanes * kLanes;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = n_keys; i < end; i++) scores[r * kKeyBlock + i] = kNever<T>;
  }
}

template <class T>
inline T largest_score(const T* scores, int64_t panels) {
  auto high = load(scores);
  for (int64_t p = 1; p < panels; p++) high = max(high, load(scores + p * kLanes));
  return largest(high);
}

// Stores the weights 2^(score * scale + shift), and returns their sums over the panels.
MATRYO_INLINE F weigh(const int32_t* scores, float scale, float shift, int64_t panels, int16_t* weights) {
  const F factor = splat(scale), start = splat(shift + kWeightBits);
  I sums = splat((int32_t)0);
  for (int64_t p = 0; p < panels; p++) {
    const I weight = to_int(exp2_coarse(fma(to_float(load(scores + p * kLanes)), factor, start)));
    store_words(weights + p * kLanes, weight);
    sums = add(sums, weight);
  }
  return to_float(sums);
}
MATRYO_INLINE F weigh(const float* scores, float, float shift, int64_t panels, float* weights) {
  const F start = splat(shift);
  F sums = splat(0.0f);
  for (int64_t p = 0; p < panels; p++) {
    const F weight = exp2(add(load(scores + p * kLanes), start));
    store(weights + p * kLanes, weight);
    sums = add(sums, weight);
  }
  return sums;
}

// Softmax over blocks of keys, each relative to its own largest score. A running maximum puts the
// blocks on one scale. A small weight is therefore rounded on the scale of its block.
//
// Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.
template <class D>
void attend_as(const Attention& a, int64_t text, int64_t head, int64_t begin, int64_t end) {
  using X = typename D::X;
  using Out = typename D::Out;
  constexpr int64_t kRows = kTileRows < 8 ? 2 * kTileRows : kTileRows;
  static_assert(kRows <= kLanes, "the maxima of all rows are one vector");
  const int64_t start = a.starts[text], n = a.starts[text + 1] - start, size = a.size;
  const int64_t at = (a.places[text] * a.heads + head * packed_rows(n)) * size;
  const int64_t width = a.heads * size;
  const X* keys = (const X*)a.keys + at;
  const X* values = (const X*)a.values + at;
  const float* scales = a.scales + 2 * (text * a.heads + head);
  const float key_scale = scales[0], value_scale = scales[1];
  const float levels = a.floats ? 1.0f : score_levels(size), factor = a.scale * kLog2E;
  alignas(64) X queries[kRows * kMostSize], weights[kRows * kKeyBlock];
  alignas(64) Out scores[kRows * kKeyBlock], parts[kRows * kMostSize];
  alignas(64) float row[kMostSize], total[kRows * kMostSize], sums[kRows * kLanes];
  alignas(64) float query_scales[kLanes], most[kLanes], shift[kLanes], old[kLanes], fresh[kLanes];
  alignas(64) Out high[kLanes];
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = end - first < kRows ? end - first : kRows;
    for (int64_t r = 0; r < rows; r++) {
      rotated(a, a.q + (start + first + r) * a.stride + head * size, first + r, row);
      for (int64_t i = 0; i < size; i += kLanes) store(row + i, mul(load(row + i), splat(factor)));
      if constexpr (D::kDepth == 2) {
        const float scale = scale_of(largest_of(row, size), levels);
        query_scales[r] = scale * key_scale;
        to_words(row, size, scale, (int16_t*)queries + r * size);
      } else {
        query_scales[r] = 1.0f;
        for (int64_t i = 0; i < size; i += kLanes) store((float*)queries + r * size + i, load(row + i));
      }
    }
    for (int64_t r = rows; r < kLanes; r++) query_scales[r] = 0.0f;
    store(high, splat(Out(0)));
    store(most, splat(-1e30f));
    for (int64_t i = 0; i < rows * kLanes; i += kLanes) store(sums + i, splat(0.0f));
    for (int64_t i = 0; i < rows * size; i += kLanes) store(total + i, splat(0.0f));
    for (int64_t key = 0; key < n; key += kKeyBlock) {
      const int64_t n_keys = n - key < kKeyBlock ? n - key : kKeyBlock;
      const int64_t panels = (n_keys + kLanes - 1) / kLanes;
      block<D>(rows, queries, size, keys + key * size, kLanes * size, panels, size / D::kDepth,
               Plain<D>{scores, kKeyBlock, false});
      if (n_keys % kLanes) end_scores(scores, rows, n_keys);
      for (int64_t r = 0; r < rows; r++) high[r] = largest_score(scores + r * kKeyBlock, panels);
      const F now = mul(as_float(high), load(query_scales)), before = load(most);
      const F next = max(before, now);
      store(most, next);
      store(shift, sub(splat(0.0f), now));
      store(old, exp2(sub(before, next)));
      store(fresh, exp2(sub(now, next)));
      for (int64_t r = 0; r < rows; r++) {
        const F of = weigh(scores + r * kKeyBlock, query_scales[r], shift[r], panels,
                           weights + r * kKeyBlock);
        float* at_row = sums + r * kLanes;
        store(at_row, fma(of, splat(fresh[r]), mul(load(at_row), splat(old[r]))));
      }
      // The last step of an odd number of keys reads one weight more, which is 0.
      const int64_t steps = (n_keys + D::kDepth - 1) / D::kDepth;
      block<D>(rows, weights, kKeyBlock, values + key * size, kKeyBlock * kLanes, size / kLanes,
               steps, Plain<D>{parts, size, false});
      for (int64_t r = 0; r < rows; r++) {
        const F of_old = splat(old[r]), of_new = splat(fresh[r]);
        for (int64_t i = r * size; i < (r + 1) * size; i += kLanes) {
          store(total + i, fma(as_float(parts + i), of_new, mul(load(total + i), of_old)));
        }
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      const F scale = splat(value_scale / sum(load(sums + r * kLanes)));
      float* y = a.y + (start + first + r) * width + head * size;
      for (int64_t i = 0; i < size; i += kLanes) store(y + i, mul(load(total + r * size + i), scale));
    }
  }
}

void attend(const Attention& a, int64_t text, int64_t head, int64_t begin, int64_t end) {
  if (a.floats) return attend_as<FloatDot>(a, text, head, begin, end);
  attend_as<WordDot<int16_t>>(a, text, head, begin, end);
}

// --- layer norm

// Source: Ba et al. 2016, Layer Normalization, arXiv:1607.06450.
void layer_norm(const float* x, int64_t rows, int64_t width, const float* scale,
                const float* bias, float epsilon, float* y) {
  const float one_of = 1.0f / (float)width;
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    F total = splat(0.0f);
    for (int64_t i = 0; i < width; i += kLanes) total = add(total, load(x + i));
    const F mean = splat(sum(total) * one_of);
    total = splat(0.0f);
    for (int64_t i = 0; i < width; i += kLanes) {
      const F centred = sub(load(x + i), mean);
      total = fma(centred, centred, total);
    }
    const F inverse = splat(1.0f / __builtin_sqrtf(sum(total) * one_of + epsilon));
    for (int64_t i = 0; i < width; i += kLanes) {
      const F value = mul(sub(load(x + i), mean), inverse), factor = load(scale + i);
      store(y + i, bias ? fma(value, factor, load(bias + i)) : mul(value, factor));
    }
  }
}

}  // namespace

extern const Kernels MATRYO_KERNELS;
const Kernels MATRYO_KERNELS = {MATRYO_ISA, round_rows, multiply, pack_keys, attend, layer_norm};

}  // namespace matryo
