// Attention. kernels.inc.h includes this file.
#pragma once

#include "functions.h"
#include "tile.h"

namespace matryo {
namespace {

// A weight of a key is at most 2^kWeightBits, and a value of a key at most kValueLevels: the sum of
// kKeyBlock products fits in 32 bits.
constexpr float kWeightBits = 14.0f;
constexpr float kValueLevels = 1023.0f;

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

// The largest magnitude, or NaN if an entry is not finite.
inline float largest_of(const float* x, int64_t n) {
  F most = splat(0.0f), faults = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F value = load(x + i);
    most = max(most, abs(value));
    faults = add_faults(value, faults);
  }
  return largest(most) + sum(faults);
}

inline float scale_of(float most, float levels) {
  const float scale = most / levels;
  return scale < 1e-20f ? 1e-20f : scale;  // NaN stays NaN
}

// x as integers, `scale` apart.
MATRYO_INLINE void to_words(const float* x, int64_t n, float scale, int16_t* out) {
  const F inverse = splat(1.0f / scale);
  for (int64_t i = 0; i < n; i += kLanes)
    store_words(out + i, to_int(nearest(mul(load(x + i), inverse))));
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

// Values: [128 keys][size / 16][128 / depth][16][depth]. Two tokens come at a time.
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
  float most_key = 0.0f, most_value = 0.0f;
  for (int64_t t = 0; t < n; t++) {
    const float* key_row = k + t * a.stride;
    if (!a.floats) rotated(a, key_row, t, row);
    const float of_key = largest_of(a.floats ? key_row : row, size);
    const float of_value = largest_of(v + t * a.stride, size);
    if (!(most_key >= of_key)) most_key = of_key + 0.0f * most_key;  // NaN stays NaN
    if (!(most_value >= of_value)) most_value = of_value + 0.0f * most_value;
  }
  if (a.floats) {
    scales[0] = 1.0f;
    scales[1] = 1.0f + 0.0f * most_key + 0.0f * most_value;  // 1, or NaN
  } else {
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

// What scores are beyond the last key, so that none is the largest.
template <class T>
constexpr T kNever = -__builtin_inff();
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

// Stores the weights of `n` keys, which are 2^((score - high) * scale), in ints times
// 2^kWeightBits. Returns their sums over the panels. The weights after the last key are 0.
//
// The difference comes first: it is 0 for the largest score, however large that is.
MATRYO_INLINE F weigh(const int32_t* scores, float scale, int32_t high, int64_t n,
                      int16_t* weights) {
  const F factor = splat(scale), most = splat((float)high), bits = splat(kWeightBits);
  I sums = splat((int32_t)0);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F below = sub(to_float(load(scores + i)), most);
    I weight = to_int(exp2_coarse(fma(below, factor, bits)));
    if (n - i < kLanes) weight = first_lanes<int32_t>(weight, n - i);
    store_words(weights + i, weight);
    sums = add(sums, weight);
  }
  return to_float(sums);
}
MATRYO_INLINE F weigh(const float* scores, float, float high, int64_t n, float* weights) {
  const F most = splat(high);
  F sums = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    F weight = exp2(sub(load(scores + i), most));
    if (n - i < kLanes) weight = first_lanes<float>(weight, n - i);
    store(weights + i, weight);
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
  alignas(64) float query_scales[kLanes], most[kLanes], old[kLanes], fresh[kLanes];
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
        for (int64_t i = 0; i < size; i += kLanes)
          store((float*)queries + r * size + i, load(row + i));
      }
    }
    for (int64_t r = rows; r < kLanes; r++) query_scales[r] = 0.0f;
    store(high, splat(Out(0)));
    store(most, splat(-__builtin_inff()));
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
      store(old, exp2(sub(before, next)));
      store(fresh, exp2(sub(now, next)));
      for (int64_t r = 0; r < rows; r++) {
        const F of = weigh(scores + r * kKeyBlock, query_scales[r], high[r], n_keys,
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
      for (int64_t i = 0; i < size; i += kLanes)
        store(y + i, mul(load(total + r * size + i), scale));
    }
  }
}

void attend(const Attention& a, int64_t text, int64_t head, int64_t begin, int64_t end) {
  if (a.floats) return attend_as<FloatDot>(a, text, head, begin, end);
  attend_as<WordDot<int16_t>>(a, text, head, begin, end);
}

}  // namespace
}  // namespace matryo
