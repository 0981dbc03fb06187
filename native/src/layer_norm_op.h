// Layer norm. Inputs: x, scale, bias.
#pragma once

#include <string>
#include <vector>

#include "call.h"
#include "kernels.h"

namespace matryo {
namespace {

class LayerNormOp {
 public:
  explicit LayerNormOp(const Attributes& a) : epsilon_(a.number("epsilon")) {}

  void compute(const Call& call) const {
    Shape shape;
    const float* x = call.needed<float>(0, &shape, "x");
    const int64_t width = shape.width(), rows = shape.rows();
    if (width < 1 || width % kLanes) {
      call.refuse("x is " + std::to_string(width) + " wide, not a multiple of " +
                  std::to_string(kLanes));
    }
    const float* scale = call.vector<float>(1, width, "scale");
    const float* bias = call.vector<float>(2, width, "bias");
    if (!scale) call.refuse("scale is missing");
    float* y = call.output(shape.dims);
    constexpr int64_t kRows = 48;  // of one task
    call.parallel(divide_up(rows, kRows), [&](int64_t i) {
      const int64_t row = i * kRows, n = rows - row < kRows ? rows - row : kRows;
      kernels()->layer_norm(x + row * width, n, width, scale, bias, epsilon_, y + row * width);
    });
  }

 private:
  float epsilon_;
};

}  // namespace
}  // namespace matryo
