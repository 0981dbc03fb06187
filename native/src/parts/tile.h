// Products of tiles of rows and panels. kernels.inc.h includes this file.
#pragma once

namespace matryo {
namespace {

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
  static MATRYO_INLINE Column weights(const W* p) {
    return {load_bytes(p), load_bytes(p + 4 * kLanes)};
  }
  static MATRYO_INLINE Sum step(Sum sum, const X* x, const Column& w) {
    return dot8(sum, x, w.now, w.next);
  }
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
  static MATRYO_INLINE Sum step(Sum sum, const X* x, const V& w) {
    return dot2(sum, x, w);
  }
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

// x[R] @ w in panels of sixteen columns; `to` says where sums begin and end. Strides count
// elements.
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

}  // namespace
}  // namespace matryo
