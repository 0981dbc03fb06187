// What the operators ask of the kernels. Each CPU class has a set of them, and one set is chosen
// when the library is loaded. All sets give the same bits.
#pragma once

#include <cstdint>

namespace matryo {

constexpr int64_t kLanes = 16;         // columns of one panel of packed weights
constexpr int64_t kKeyBlock = 128;     // keys whose weighted values are added as integers
constexpr int64_t kGroup = 192;        // neighbours along the input that share a scale, in kBytes
constexpr int64_t kMostBlockRows = 480;  // see block_rows
constexpr int64_t kMostWidth = 16384;  // of a row of activations that is no multiple of 16 wide
constexpr int64_t kMostSize = 256;     // of an attention head

enum class Numbers : int64_t {
  kBytes = 0,   // activations in 8 bits with a zero point, weights in 8 bits
  kWords = 1,   // activations in 16 bits, weights in 8 bits
  kFloats = 2,  // both in float32
};

enum class Activation : int64_t {
  kNone = 0,
  kGelu = 1,      // exact, by erf
  kSiluGate = 2,  // up * silu(gate); panels of up and gate alternate
  kGeluGate = 3,  // up * gelu(gate), likewise
};

// A linear layer. Weights are packed in panels of 16 columns, [panels, steps, 16, depth], where
// depth is 4 for kBytes, 2 for kWords and 1 for kFloats. kBytes has an even number of steps.
struct Linear {
  Numbers numbers;
  Activation activation;
  const float* x;         // (rows, k)
  const float* channels;  // (k,): x is multiplied by them before it is rounded; or null
  const void* weights;    // int8, int8 or float32
  const float* scales;    // (groups, columns) of the weights; null for kFloats
  const int32_t* sums;    // (groups, columns) of the weights, for the zero point; kBytes alone
  const float* bias;      // of the columns, or null
  const float* residual;  // (rows, n), added to the result, or null
  float* y;               // (rows, n)
  int64_t k, n, panels;
  int32_t zero_point;  // 1 to 254, kBytes alone
};

// The number of groups of a row of k entries: kBytes has a scale for each kGroup of them.
constexpr int64_t groups_of(Numbers numbers, int64_t k) {
  return numbers == Numbers::kBytes ? (k + kGroup - 1) / kGroup : 1;
}

// The rows that a linear layer multiplies by all weights before it takes the next. Fewer rows at a
// time would fetch the weights more often, and more would leave the second cache; float weights are
// four times as large, so that they gain by more rows.
constexpr int64_t block_rows(Numbers numbers, int64_t k) {
  const int64_t bytes = k * (numbers == Numbers::kBytes ? 1 : numbers == Numbers::kWords ? 2 : 4);
  const int64_t rows = (numbers == Numbers::kFloats ? 1 << 20 : 1 << 17) / bytes / 12 * 12;
  return rows < 48 ? 48 : rows > kMostBlockRows ? kMostBlockRows : rows;
}

// Rows of x as integers, `stride` bytes apart, and the scales of each, (rows, groups).
struct Rounded {
  uint8_t* values;
  float* scales;
  int64_t stride;
};

// Bidirectional attention within each text. Rows of all texts follow one another.
struct Attention {
  bool floats;  // compute in float32; else in 16-bit integers
  const float *q, *k, *v;
  int64_t stride;          // floats from one row of q, k or v to the next
  const int64_t* starts;   // (texts + 1,): the first row of each text
  int64_t heads, size;     // size: of a head, divisible by 16
  const float *cos, *sin;  // (positions, size / 2), or null
  float scale;             // of the scores
  float* y;                // (rows, heads * size)
  const int64_t* places;   // (texts,): the packed rows before those of each text
  void *keys, *values;     // packed, [text][head][packed_rows][size]
  float* scales;           // (texts, heads, 2): of keys and of values
};

struct Kernels {
  const char* isa;
  // Rounds rows begin to end of x. Row `begin` goes to the first place of `to`.
  void (*round_rows)(const Linear&, int64_t begin, int64_t end, const Rounded& to);
  // Columns of panels first to last of rows begin to end of y. Row `begin` is the first of `from`.
  void (*multiply)(const Linear&, int64_t begin, int64_t end, int64_t first, int64_t last,
                   const Rounded& from);
  // Packs the keys and values of one head of one text.
  void (*pack_keys)(const Attention&, int64_t text, int64_t head);
  // Rows begin to end of a text, counted from the text's first row.
  void (*attend)(const Attention&, int64_t text, int64_t head, int64_t begin, int64_t end);
  // Layer norm of rows of `width` floats, divisible by 16; bias may be null.
  void (*layer_norm)(const float* x, int64_t rows, int64_t width, const float* scale,
                     const float* bias, float epsilon, float* y);
};

// Rows of the packed keys, and of the packed values, of a text of n tokens.
constexpr int64_t packed_rows(int64_t n) { return (n + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

// The kernels of this CPU, or those that MATRYO_NATIVE_ISA names; null if it cannot run these.
const Kernels* kernels();

}  // namespace matryo
