// Attention. Inputs: qkv, lengths, cosines, sines.
#pragma once

#include <string>
#include <vector>

#include "call.h"
#include "kernels.h"

namespace matryo {
namespace {

class AttentionOp {
 public:
  explicit AttentionOp(const Attributes& a)
      : heads_(a.integer("num_heads", 1, 1 << 16)),
        floats_(a.integer("floats", 0, 1) != 0),
        scale_(a.number("scale")) {}

  void compute(const Call& call) const {
    Shape shape, lengths_shape, cos_shape, sin_shape;
    Attention a{};
    const float* qkv = call.needed<float>(0, &shape, "qkv");
    const int64_t* lengths = call.needed<int64_t>(1, &lengths_shape, "lengths");
    a.cos = call.input<float>(2, &cos_shape);
    a.sin = call.input<float>(3, &sin_shape);
    const int64_t width = shape.width() / 3, texts = lengths_shape.size();
    a.floats = floats_;
    a.heads = heads_;
    a.size = width / heads_;
    a.stride = shape.width();
    a.scale = scale_;
    const int64_t step = a.cos ? 2 * kLanes : kLanes;
    if (a.size * heads_ * 3 != a.stride || a.size < 1 || a.size % step || a.size > kMostSize) {
      call.refuse("qkv is " + std::to_string(a.stride) + " wide, which is not three times " +
                  std::to_string(heads_) + " heads, each a multiple of " + std::to_string(step) +
                  " wide and at most " + std::to_string(kMostSize));
    }
    const int64_t rows = shape.rows();
    std::vector<int64_t> starts(texts + 1), places(texts);
    int64_t longest = 0;
    for (int64_t i = 0; i < texts; i++) {
      if (lengths[i] < 0 || lengths[i] > rows - starts[i]) {
        call.refuse("a text has " + std::to_string(lengths[i]) + " tokens, of " +
                    std::to_string(rows - starts[i]) + " rows that are left");
      }
      starts[i + 1] = starts[i] + lengths[i];
      longest = lengths[i] > longest ? lengths[i] : longest;
    }
    if (starts[texts] != rows) {
      call.refuse("the lengths add up to " + std::to_string(starts[texts]) + ", not to the " +
                  std::to_string(rows) + " rows");
    }
    if (!a.cos != !a.sin || cos_shape.dims != sin_shape.dims) {
      call.refuse("cosines and sines have not the same shape");
    }
    if (a.cos && (cos_shape.width() != a.size / 2 || cos_shape.rows() < longest)) {
      call.refuse("cosines are (" + std::to_string(cos_shape.rows()) + ", " +
                  std::to_string(cos_shape.width()) + "), not at least (" +
                  std::to_string(longest) + ", " + std::to_string(a.size / 2) + ")");
    }
    std::vector<int64_t> y_dims = shape.dims;
    y_dims.back() = width;
    float* y = call.output(y_dims);

    constexpr int64_t kGroup = 2048;  // packed rows of the texts that share the scratch memory
    for (int64_t first = 0; first < texts;) {
      int64_t last = first, packed = 0;
      while (last < texts && (last == first || packed + packed_rows(lengths[last]) <= kGroup)) {
        places[last] = packed;
        packed += packed_rows(lengths[last++]);
      }
      const int64_t row = starts[first], group = last - first;
      a.q = qkv + row * a.stride;
      a.k = a.q + width;
      a.v = a.k + width;
      a.y = y + row * width;
      std::vector<int64_t> group_starts(group + 1), tasks(group + 1);
      for (int64_t i = 0; i <= group; i++) group_starts[i] = starts[first + i] - row;
      for (int64_t i = 0; i < group; i++) {
        tasks[i + 1] = tasks[i] + heads_ * divide_up(lengths[first + i], kQueryRows);
      }
      a.starts = group_starts.data();
      a.places = places.data() + first;
      const int64_t bytes = packed * width * (floats_ ? 4 : 2);
      const Scratch<uint8_t> keys(call, bytes), values(call, bytes);
      const Scratch<float> scales(call, group * heads_ * 2);
      a.keys = keys.get();
      a.values = values.get();
      a.scales = scales.get();
      call.parallel(group * heads_,
                    [&](int64_t i) { kernels()->pack_keys(a, i / heads_, i % heads_); });
      call.parallel(tasks[group], [&](int64_t i) {
        int64_t text = 0;
        while (tasks[text + 1] <= i) text++;
        const int64_t n = lengths[first + text], blocks = divide_up(n, kQueryRows);
        const int64_t head = (i - tasks[text]) / blocks,
                      begin = (i - tasks[text]) % blocks * kQueryRows;
        kernels()->attend(a, text, head, begin, begin + kQueryRows < n ? begin + kQueryRows : n);
      });
      first = last;
    }
  }

 private:
  static constexpr int64_t kQueryRows = 120;  // queries of one task; tiles of every CPU divide it
  int64_t heads_;
  bool floats_;
  float scale_;
};

}  // namespace
}  // namespace matryo
