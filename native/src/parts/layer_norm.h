// Layer norm. kernels.inc.h includes this file.
#pragma once

namespace matryo {
namespace {

// Source: Ba et al. 2016, Layer Normalization, arXiv:1607.06450.
void layer_norm(const float* x, int64_t rows, int64_t width, const float* scale, const float* bias,
                float epsilon, float* y) {
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
}  // namespace matryo
