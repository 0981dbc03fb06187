// Linear layers. kernels.inc.h includes this file.
#pragma once

#include "functions.h"
#include "tile.h"

namespace matryo {
namespace {

constexpr int64_t kGroupPanels = 4;   // panels whose results are finished together
constexpr int64_t kFloatSteps = 512;  // depth of float weights that stay in the cache

// The largest magnitude of a 16-bit activation: sums of k products with 127 fit in 32 bits.
inline int64_t word_levels(int64_t k) {
  const int64_t most = INT32_MAX / (127 * k);
  return most < INT16_MAX ? most : INT16_MAX;
}

// Sixteen entries of a row of activations, times the channels' factors if there are any.
template <bool kChannels>
MATRYO_INLINE F entries(const float* x, const float* channels, int64_t i) {
  if constexpr (kChannels) return mul(load(x + i), load(channels + i));
  return load(x + i);
}

// Rounds `n` entries, a multiple of the lanes, and returns their scale. The scale is NaN if an
// entry is not finite, so that all results of the row are NaN.
template <bool kWords, bool kChannels>
float round_group(const float* x, const float* channels, int64_t n, float of_above, float of_below,
                  float zero_point, uint8_t* values) {
  F high = splat(0.0f), low = splat(0.0f), faults = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F value = entries<kChannels>(x, channels, i);
    high = max(value, high);
    low = min(value, low);
    faults = add_faults(value, faults);
  }
  const float above = largest(high) * of_above;
  const float below = largest(sub(splat(0.0f), low)) * of_below;
  const float most = above > below ? above : below;
  const float scale = (most < 1e-20f ? 1e-20f : most) + sum(faults);
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
    return {initial + p * kLanes,
            scales + p * kLanes,
            row_scales + r * groups,
            groups,
            totals + (r * kGroupPanels + p) * kLanes,
            more};
  }
  MATRYO_INLINE I begin(int64_t, int64_t p) const { return load(initial + p * kLanes); }
  MATRYO_INLINE void end(int64_t r, int64_t p, const I& sum) const {
    const F value = mul(to_float(sum), splat(row_scales[r * groups])),
            scale = load(scales + p * kLanes);
    float* total = totals + (r * kGroupPanels + p) * kLanes;
    store(total, more ? fma(value, scale, load(total)) : mul(value, scale));
  }
};

// Bias, activation and residual of one row, for a group of panels.
inline void finish(const Linear& a, const float* totals, int64_t row, int64_t panel,
                   int64_t panels) {
  const bool silu_gate = a.activation == Activation::kSiluGate;
  const bool gated = silu_gate || a.activation == Activation::kGeluGate;
  const int64_t of_result = gated ? 2 : 1;  // panels of a panel of the result
  for (int64_t p = 0; p < panels; p += of_result) {
    F value = load(totals + p * kLanes);
    if (a.bias) value = add(value, load(a.bias + (panel + p) * kLanes));
    if (gated) {
      F gate = load(totals + (p + 1) * kLanes);
      if (a.bias) gate = add(gate, load(a.bias + (panel + p + 1) * kLanes));
      value = mul(value, silu_gate ? silu(gate) : gelu(gate));
    }
    if (a.activation == Activation::kGelu) value = gelu(value);
    const int64_t column = (panel + p) / of_result * kLanes, left = a.n - column;
    const int64_t at = row * a.n + column;
    if (a.residual) value = add(load_upto(a.residual + at, left), value);
    store_upto(a.y + at, value, left);
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
          if constexpr (D::kDepth == ByteDot::kDepth) {
            const I offset = splat((int32_t)kByteShift - a.zero_point);
            for (int64_t p = 0; p < panels; p++) {
              store(initial + p * kLanes, mul(offset, load(a.sums + column + p * kLanes)));
            }
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

}  // namespace
}  // namespace matryo
