// Prints a hash of what each kernel computes, for CPUs without Python: two builds for two CPUs
// print the same lines.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

using namespace matryo;

namespace {

uint64_t state = 1;

// A number from -1 to 1, in steps that every CPU represents.
float draw() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (float)((int64_t)(state >> 40) - (1 << 23)) / (float)(1 << 23);
}

// Memory at an address that 64 divides.
template <class T>
struct Array {
  T* data;
  int64_t size;
  explicit Array(int64_t n) : size(n) {
    const size_t bytes = ((size_t)n * sizeof(T) + 127) / 64 * 64;
    data = (T*)std::aligned_alloc(64, bytes);
    for (int64_t i = 0; i < n; i++) data[i] = T(0);
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

Array<float>& fill(Array<float>& a, float size) {
  for (int64_t i = 0; i < a.size; i++) a.data[i] = draw() * size;
  return a;
}

void print(const char* what, int64_t a, int64_t b, int64_t c, const Array<float>& y) {
  uint64_t hash = 14695981039346656037u;
  for (int64_t i = 0; i < y.size; i++) {
    uint32_t bits = 0x7fc00000;  // of NaN, whose bits differ between CPUs
    if (y.data[i] == y.data[i]) __builtin_memcpy(&bits, y.data + i, 4);
    for (int k = 0; k < 4; k++) hash = (hash ^ (bits >> 8 * k & 255)) * 1099511628211u;
  }
  std::printf("%016llx %s %lld %lld %lld\n", (unsigned long long)hash, what, (long long)a,
              (long long)b, (long long)c);
}

void linear(Numbers numbers, Activation activation, int64_t rows, int64_t k, int64_t n,
            float size) {
  const bool gated = activation == Activation::kSiluGate || activation == Activation::kGeluGate;
  const int64_t depth = numbers == Numbers::kBytes ? 8 : numbers == Numbers::kWords ? 2 : 1;
  Linear a{};
  a.numbers = numbers;
  a.activation = activation;
  a.k = k;
  a.n = n;
  a.panels = (n + 15) / 16 * (gated ? 2 : 1);
  a.zero_point = 100;
  const int64_t columns = a.panels * 16, groups = groups_of(numbers, k);
  const int64_t packed = columns * ((k + depth - 1) / depth * depth);
  Array<float> x(rows * k), channels(k), scales(groups * columns), bias(columns);
  Array<float> residual(rows * n), y(rows * n), floats(packed);
  Array<int8_t> bytes(packed);
  Array<int32_t> sums(groups * columns);
  a.x = fill(x, size).data;
  if (k > 2) x.data[k / 2] = size > 1 ? __builtin_nanf("") : size;
  a.channels = fill(channels, 2).data;
  a.scales = fill(scales, 0.01f).data;
  a.bias = fill(bias, 1).data;
  a.residual = fill(residual, 1).data;
  a.y = y.data;
  fill(floats, 1);
  // Four weights times 255 fit in sixteen bits.
  const int64_t steps = (k + 7) / 8 * 2;  // of four neighbours
  for (int64_t i = 0; i < packed; i++) {
    const int64_t step = i / 64 % steps, column = i / 64 / steps * 16 + i % 64 / 4;
    const bool inside = numbers != Numbers::kBytes || step * 4 + i % 4 < k;
    bytes.data[i] = inside ? (int8_t)(draw() * 31) : 0;
    if (numbers != Numbers::kBytes) continue;
    sums.data[step * 4 / kGroup * columns + column] += bytes.data[i];
  }
  a.sums = sums.data;
  a.weights = numbers == Numbers::kFloats ? (const void*)floats.data : bytes.data;
  const int64_t stride = (2 * k + 63) / 64 * 64 + 64;
  Array<uint8_t> values(rows * stride);
  Array<float> row_scales(rows * groups);
  const Rounded rounded{values.data, row_scales.data, stride};
  if (numbers != Numbers::kFloats) kernels()->round_rows(a, 0, rows, rounded);
  kernels()->multiply(a, 0, rows, 0, a.panels, rounded);
  print(numbers == Numbers::kBytes   ? "bytes"
        : numbers == Numbers::kWords ? "words"
                                     : "floats",
        (int64_t)activation, k, n, y);
}

void attention(bool floats, int64_t size, int64_t n, float magnitude, bool rotary) {
  constexpr int64_t kHeads = 2;
  const int64_t width = kHeads * size, packed = packed_rows(n) * width;
  Array<float> qkv(3 * n * width), cos(n * size / 2), sin(n * size / 2), y(n * width);
  Array<float> keys(packed), values(packed), scales(2 * kHeads);
  const int64_t starts[2] = {0, n}, places[1] = {0};
  Attention a{};
  a.floats = floats;
  a.q = fill(qkv, magnitude).data;
  a.k = a.q + width;
  a.v = a.k + width;
  a.stride = 3 * width;
  a.starts = starts;
  a.heads = kHeads;
  a.size = size;
  a.cos = rotary ? fill(cos, 1).data : nullptr;
  a.sin = rotary ? fill(sin, 1).data : nullptr;
  a.scale = 0.125f;
  a.y = y.data;
  a.places = places;
  a.keys = keys.data;
  a.values = values.data;
  a.scales = scales.data;
  for (int64_t head = 0; head < kHeads; head++) {
    kernels()->pack_keys(a, 0, head);
    kernels()->attend(a, 0, head, 0, n);
  }
  print(floats ? "attention of floats" : "attention", size, n, rotary, y);
}

void layer_norm(int64_t rows, int64_t width) {
  Array<float> x(rows * width), scale(width), bias(width), y(rows * width);
  fill(x, 3), fill(scale, 1), fill(bias, 1);
  kernels()->layer_norm(x.data, rows, width, scale.data, bias.data, 1e-5f, y.data);
  print("layer norm", rows, width, 0, y);
}

}  // namespace

int main() {
  if (!kernels()) return 1;
  for (Numbers numbers : {Numbers::kBytes, Numbers::kWords, Numbers::kFloats}) {
    for (int64_t activation = 0; activation < 4; activation++) {
      for (int64_t k : {1, 7, 16, 192, 200, 600}) {
        linear(numbers, (Activation)activation, 7, k, 50, 1.0f);
        linear(numbers, (Activation)activation, 49, k, 16, 20.0f);
      }
    }
  }
  for (bool floats : {false, true}) {
    for (int64_t size : {32, 64, 256}) {
      for (int64_t n : {1, 15, 64, 131}) {
        attention(floats, size, n, 0.01f, false);
        attention(floats, size, n, 3.0f, true);
        attention(floats, size, n, 1e5f, false);
      }
    }
  }
  for (int64_t width : {16, 96, 768}) layer_norm(5, width);
  return 0;
}
