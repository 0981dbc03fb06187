// A linear layer. Inputs: x, weights, scales, sums, bias, channels, residual.
#pragma once

#include <string>
#include <vector>

#include "call.h"
#include "kernels.h"

namespace matryo {
namespace {

class LinearOp {
 public:
  LinearOp(const Attributes& a, bool floats)
      : numbers_(floats ? Numbers::kFloats
                        : (a.integer("fine", 0, 1) ? Numbers::kWords : Numbers::kBytes)),
        activation_((Activation)a.integer("activation", 0, (int64_t)Activation::kGeluGate)),
        n_(a.integer("columns", 1, kMostColumns)),
        zero_point_(numbers_ == Numbers::kBytes ? (int32_t)a.integer("zero_point", 1, 254) : 0) {}

  template <class W>
  void compute(const Call& call) const {
    Shape x_shape, w_shape;
    Linear a{};
    a.numbers = numbers_;
    a.activation = activation_;
    a.x = call.needed<float>(0, &x_shape, "x");
    a.weights = call.needed<W>(1, &w_shape, "the packed weights");
    a.k = x_shape.width();
    a.n = n_;
    a.zero_point = zero_point_;
    const int64_t rows = x_shape.rows();
    // A row of words that is no multiple of the lanes wide is copied, to be completed by zeros.
    const bool copies = numbers_ == Numbers::kWords && a.k % kLanes;
    const int64_t most_width = copies ? kMostWidth : kMostColumns;
    if (a.k < 1 || a.k > most_width) {
      call.refuse("x is " + std::to_string(a.k) + " wide, not 1 to " + std::to_string(most_width));
    }
    const int64_t depth = numbers_ == Numbers::kBytes ? 8 : numbers_ == Numbers::kWords ? 2 : 1;
    const bool gated = activation_ == Activation::kSiluGate || activation_ == Activation::kGeluGate;
    a.panels = divide_up(n_, kLanes) * (gated ? 2 : 1);
    const int64_t expected = a.panels * divide_up(a.k, depth) * depth * kLanes;
    if (w_shape.size() != expected) {
      call.refuse("the packed weights have " + std::to_string(w_shape.size()) + " elements, not " +
                  std::to_string(expected));
    }
    const int64_t padded = a.panels * kLanes;
    const int64_t groups = groups_of(numbers_, a.k);
    a.scales = call.vector<float>(2, groups * padded, "scales");
    a.sums = call.vector<int32_t>(3, groups * padded, "sums");
    a.bias = call.vector<float>(4, padded, "bias");
    a.channels = call.vector<float>(5, a.k, "channels");
    a.residual = call.vector<float>(6, rows * n_, "residual");
    if (numbers_ != Numbers::kFloats && !a.scales) call.refuse("scales are missing");
    if (numbers_ == Numbers::kBytes && !a.sums) call.refuse("sums are missing");
    std::vector<int64_t> y_dims = x_shape.dims;
    y_dims.back() = n_;
    a.y = call.output(y_dims);

    // Rows are rounded a few blocks at a time. Threads share the blocks, and where there are fewer
    // blocks than threads may need, the panels of a block.
    constexpr int64_t kTasks = 8;
    const int64_t block = block_rows(numbers_, a.k);
    const int64_t together = block * (2 * kMostBlockRows / block);
    const bool rounds = numbers_ != Numbers::kFloats;
    const int64_t most_rows = rows < together ? rows : together;
    const int64_t element = numbers_ == Numbers::kWords ? 2 : 1;
    Rounded all{};
    // A row ends with a whole number of lanes. The 64 bytes more keep rows off one cache set.
    all.stride = divide_up(a.k * element, 64) * 64 + 64;
    const Scratch<uint8_t> values(call, rounds ? most_rows * all.stride : 0);
    const Scratch<float> scales(call, most_rows * groups);
    all.values = values.get();
    all.scales = scales.get();
    for (int64_t first = 0; first < rows; first += most_rows) {
      const int64_t end = first + most_rows < rows ? first + most_rows : rows;
      const int64_t blocks = divide_up(end - first, block);
      const auto from = [&](int64_t row) {
        const int64_t i = row - first;
        return Rounded{all.values + i * all.stride, all.scales + i * groups, all.stride};
      };
      const auto end_of = [&](int64_t row) {
        return row + block < end ? row + block : end;
      };
      if (rounds) {
        call.parallel(blocks, [&](int64_t i) {
          const int64_t row = first + i * block;
          kernels()->round_rows(a, row, end_of(row), from(row));
        });
      }
      const int64_t pairs = divide_up(a.panels, 2);
      const int64_t wanted = divide_up(kTasks, blocks), parts = wanted < pairs ? wanted : pairs;
      const int64_t each = divide_up(pairs, parts) * 2;
      call.parallel(blocks * parts, [&](int64_t i) {
        const int64_t row = first + i / parts * block, panel = i % parts * each;
        const int64_t last = panel + each < a.panels ? panel + each : a.panels;
        if (panel < last) kernels()->multiply(a, row, end_of(row), panel, last, from(row));
      });
    }
  }

 private:
  static constexpr int64_t kMostColumns = 1 << 20;  // of inputs, and of results
  Numbers numbers_;
  Activation activation_;
  int64_t n_;
  int32_t zero_point_;
};

}  // namespace
}  // namespace matryo
