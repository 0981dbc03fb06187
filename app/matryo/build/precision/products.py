"""Writes the ONNX nodes that multiply activations by weights, in one precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import BLOCK_SIZE, FloatArray, Weights
from matryo.build.emit import CONTRIB, GraphBuilder
from matryo.build.precision.fused import Fused, NativeLayers
from matryo.build.precision.quantize import (
    LEAST_SCALE,
    block_bytes,
    quantize_blocks,
    quantize_rows,
)
from matryo.core.choices import NATIVE_PRECISIONS, Precision

_BITS: dict[Precision, int] = {"q8": 8, "q4": 4}
# At level 4 MatMulNBits quantises activations to int8. At lower levels it computes in float.
# Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits, `accuracy_level`.
_ACCURACY_LEVEL = 4
_ZERO_POINT = 128
# GELU never gives less than -0.17, so most of the range is for positive values.
_ONE_SIDED_ZERO_POINT = 32
# In a fine product the rounding errors have scales this many times smaller than the values.
_FINER = 254
# Strength of the smoothing: 0 leaves the channels as they are, 1 gives all the same width. The
# widths come from the norm's parameters, not from calibration data.
# Source: Xiao et al. 2022, SmoothQuant, arXiv:2211.10438, equation 4.
_SMOOTHING = 0.75


@dataclass(frozen=True, slots=True)
class Operand:
    """The left side of one or more products, as names of values in the graph.

    In every precision but `int8`, only `values` is set.

    Attributes:
        values: `(N, K)`, uint8 in `int8`, else float32.
        scales: `(N, 1)` float32, the scale of each row. The float value of an entry is its scale
            times (value - zero point).
        zero_point: uint8 scalar, the value that means 0.
        channels: `(K,)`, the widths of the channels. The values were divided by them, and the
            weights are multiplied by them. None for no smoothing.
        source: `(N, K)` float32, the activations before rounding; empty if they are not known.
        row_scales: `(N,)` float32, the scales without pending scales.
        zero_byte: the byte that means 0, where a native operator rounds the values.
    """

    values: str
    scales: str = ""
    zero_point: str = ""
    channels: FloatArray | None = None
    source: str = ""
    row_scales: str = ""
    zero_byte: int = _ZERO_POINT


class Products:
    """Writes products of activations and weights, in one precision.

    Args:
        graph: the graph under construction.
        weights: the weights, under the architecture's names.
        precision: the precision of every product.

    Attributes:
        precision: the precision of every product.
        native: whether the products are operators of matryo-native.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights, precision: Precision) -> None:
        self._graph = graph
        self._weights = weights
        self.precision: Precision = precision
        self._operands: dict[tuple[str, bool, str], Operand] = {}
        self._errors: dict[str, str] = {}
        self._native = NativeLayers(graph, weights, precision)
        self._even: dict[str, tuple[str, str]] = {}
        self.native = graph.native and precision in NATIVE_PRECISIONS
        if precision == "int8" and not self.native:
            for name, value in (
                ("one", np.float32(1)),
                ("finer", np.float32(1 / _FINER)),
                ("least_step", np.array([LEAST_SCALE])),
                *_range("", _ZERO_POINT),
                *_range("one_sided_", _ONE_SIDED_ZERO_POINT),
                ("last_axis", np.array([-1], np.int64)),
            ):
                graph.constant(f"int8.{name}", np.array(value))
        if precision in _BITS:
            for name, value in (("start", [0]), ("before", [0, 0]), ("two", [2])):
                graph.constant(f"blocks.{name}", np.array(value, np.int64))

    def words(self, table: tuple[int, int], rows: Iterable[FloatArray], ids: str) -> str:
        """Rows of the word table; `(N, H)` float32.

        fp32 keeps the table as floats. Every other precision keeps it in 8-bit blocks of 32, if
        32 divides H. They take about a quarter of the memory, and round far less than the
        products do.

        Args:
            table: shape of the table, `(vocab, H)`.
            rows: the table, in pieces of one or more rows.
            ids: `(N,)` int64, the row of each token.
        """
        graph = self._graph
        n_blocks = -(-table[1] // BLOCK_SIZE)
        if self.precision == "fp32" or table[1] % BLOCK_SIZE:
            return graph.op("Gather", graph.tensor("word_embeddings", table, rows), ids)
        scales = np.empty((table[0], n_blocks), np.float32)

        def values() -> Iterable[NDArray[np.uint8]]:
            start = 0
            for piece in rows:
                blocks = quantize_blocks(piece, bits=8)
                scales[start : start + len(piece)] = blocks.scales
                start += len(piece)
                yield blocks.values

        stored = graph.tensor("word_embeddings.values", table, values())
        scale = graph.tensor("word_embeddings.scales", scales.shape, [scales])
        return graph.op(
            "GatherBlockQuantized",
            stored,
            ids,
            scale,
            domain=CONTRIB,
            bits=8,
            block_size=BLOCK_SIZE,
            gather_axis=0,
            quantize_axis=1,
        )

    def operand(
        self, x: str, *, norm: str = "", one_sided: bool = False, pending_scales: str = ""
    ) -> Operand:
        """`x` as the left side of products; in `int8` rounded, once for each `x`.

        Args:
            x: activations, `(N, K)`, at least one row.
            norm: name of the layer norm that gave `x`. Its weights give the width of each
                channel. Channels of equal width lose less by rounding.
            one_sided: whether the negative entries of `x` are few and small.
            pending_scales: `(N, 1)`, scales by which `x` has not been multiplied yet; the
                products are multiplied by them. Only in `int8`.
        """
        if self.precision != "int8":
            return Operand(x)
        if self.native:
            channels = self._channel_widths(norm) if norm else None
            zero = _ONE_SIDED_ZERO_POINT if one_sided else _ZERO_POINT
            return Operand(x, channels=channels, zero_byte=zero)
        key = (x, one_sided, norm)
        if key not in self._operands:
            self._operands[key] = self._quantize(x, norm=norm, one_sided=one_sided)
        operand = self._operands[key]
        if not pending_scales:
            return operand
        return replace(operand, scales=self._graph.op("Mul", operand.scales, pending_scales))

    def _quantize(self, x: str, *, norm: str, one_sided: bool) -> Operand:
        """`x` rounded to uint8, with a scale for each row."""
        graph = self._graph
        channels: FloatArray | None = None
        if norm:
            channels = self._channel_widths(norm)
            x = graph.op("Mul", x, graph.constant(f"{norm}.smoothing", 1 / channels))
        prefix = "int8.one_sided_" if one_sided else "int8."
        largest = graph.op("ReduceMax", x, "int8.last_axis", keepdims=0)
        smallest = graph.op("ReduceMin", x, "int8.last_axis", keepdims=0)
        above = graph.op("Mul", largest, f"{prefix}above")
        below = graph.op("Mul", smallest, f"{prefix}below")
        row_scales = graph.op("Max", above, below, "int8.least_step")
        zero_point = f"{prefix}middle"
        values = self._round(x, row_scales, zero_point)
        scales = graph.op("Unsqueeze", row_scales, "int8.last_axis")
        return Operand(values, scales, zero_point, channels, x, row_scales)

    def _round(self, x: str, row_scales: str, zero_point: str) -> str:
        """`x` divided by the scale of its row, rounded, plus the zero point; `(N, K)` uint8."""
        zero_points = self._zero_points(row_scales, zero_point)
        return self._graph.op("QuantizeLinear", x, row_scales, zero_points, axis=0)

    def _zero_points(self, row_scales: str, zero_point: str) -> str:
        """The zero point of each row, `(N,)`: ONNX requires as many zero points as scales."""
        return self._graph.op("Expand", zero_point, self._graph.op("Shape", row_scales))

    def _channel_widths(self, norm: str) -> FloatArray:
        """The width of each channel of a norm's output, to the power `_SMOOTHING`; `(K,)`.

        A width is relative to the widest channel. The bound `3 |scale| + |shift|` holds for nearly
        all entries if they are normally distributed.
        """
        shape = self._weights.shape(f"{norm}.weight")
        width = 3 * np.abs(self._weights.read(f"{norm}.weight", shape))
        if self._weights.has(f"{norm}.bias"):
            width = width + np.abs(self._weights.read(f"{norm}.bias", shape))
        width = np.maximum(width / max(float(width.max()), 1e-30), np.float32(1e-3))
        return np.asarray(width**_SMOOTHING, np.float32)

    def rows(self, operand: Operand, rows: str) -> Operand:
        """The rows of an operand at the indices `rows`, `(M,)` int64; M may be 0."""
        values = self._graph.op("Gather", operand.values, rows)
        if not operand.scales:
            return replace(operand, values=values)
        scales = self._graph.op("Gather", operand.scales, rows)
        return Operand(values, scales, operand.zero_point, operand.channels)

    def split(self, operand: Operand, n: int, counts: str) -> list[Operand]:
        """An operand split by rows into `n` pieces.

        Args:
            operand: the operand.
            n: number of pieces.
            counts: `(n,)` int64, the number of rows of each piece; it may be 0.
        """
        values = self._graph.ops("Split", n, operand.values, counts)
        if not operand.scales:
            return [replace(operand, values=piece) for piece in values]
        scales = self._graph.ops("Split", n, operand.scales, counts)
        return [
            Operand(*piece, operand.zero_point, operand.channels)
            for piece in zip(values, scales, strict=True)
        ]

    def product(
        self,
        operand: Operand,
        name: str,
        shape: tuple[int, int],
        *,
        fine: bool = False,
        apply_scales: bool = True,
    ) -> str:
        """`operand @ weight.T`; `(N, out)` float32.

        Args:
            operand: the left side, `(N, in)`.
            name: name of the weight.
            shape: shape of the weight, `(out, in)`.
            fine: in `int8`, add a second product with the operand's rounding errors. The work
                doubles, and almost nothing of the operand's rounding remains. The operand must
                not be one-sided.
            apply_scales: False leaves the multiplication by `operand.scales`, which only `int8`
                has, to the caller.
        """
        if self.native:
            return self.fused(operand, Fused((name,), shape), fine=fine)
        if self.precision == "fp32":
            out, into = shape
            transposed = self._weights.read(name, shape).T  # MatMul takes (in, out)
            weight = self._graph.tensor(name, (into, out), [transposed])
            return self._graph.op("MatMul", operand.values, weight)
        if self.precision == "int8":
            y = self._int8(operand, name, shape, fine=fine)
            return self._graph.op("Mul", y, operand.scales) if apply_scales else y
        return self._blocks(operand.values, name, shape)

    def fused(self, operand: Operand, layer: Fused, *, fine: bool = False) -> str:
        """A whole linear layer as one native operator; `(N, out)` float32.

        Args:
            operand: the left side, `(N, in)`.
            layer: what the layer computes.
            fine: in `int8`, round the activations to 16 bits and not to 8.
        """
        values, channels = operand.values, operand.channels
        return self._native.emit(values, channels, operand.zero_byte, layer, fine=fine)

    def _int8(self, operand: Operand, name: str, shape: tuple[int, int], *, fine: bool) -> str:
        """A product of bytes, not yet multiplied by the operand's scales."""
        graph, (out, into) = self._graph, shape
        weight = self._weights.read(name, shape)
        if operand.channels is not None:
            weight = weight * operand.channels
        levels, level_scales = quantize_rows(weight)
        stored = graph.tensor(f"{name}.values", (into, out), [np.ascontiguousarray(levels.T)])
        weight_scales = graph.constant(f"{name}.scales", level_scales)

        def multiply(values: str) -> str:
            inputs = (values, stored, "int8.one", weight_scales, operand.zero_point)
            return graph.op("MatMulIntegerToFloat", *inputs, domain=CONTRIB)

        y = multiply(operand.values)
        if fine:
            assert operand.zero_point == "int8.middle", name
            errors = multiply(self._rounding_errors(operand))
            y = graph.op("Add", y, graph.op("Mul", errors, "int8.finer"))
        return y

    def _rounding_errors(self, operand: Operand) -> str:
        """An operand's rounding errors, with scales 254 times smaller; `(N, K)` uint8."""
        if operand.values not in self._errors:
            graph, row_scales = self._graph, operand.row_scales
            zero_points = self._zero_points(row_scales, operand.zero_point)
            inputs = (operand.values, row_scales, zero_points)
            rounded = graph.op("DequantizeLinear", *inputs, axis=0)
            errors = graph.op("Sub", operand.source, rounded)
            scales = graph.op("Mul", row_scales, "int8.finer")
            self._errors[operand.values] = self._round(errors, scales, operand.zero_point)
        return self._errors[operand.values]

    def _blocks(self, x: str, name: str, shape: tuple[int, int]) -> str:
        """A product with weights in blocks of 32; `(N, out)` float32."""
        graph, (out, into) = self._graph, shape
        bits = _BITS[self.precision]
        # Blocks that the checkpoint already holds are taken as they are, without new rounding.
        blocks = self._weights.blocks(name, shape, bits)
        blocks = blocks or quantize_blocks(self._weights.read(name, shape), bits)
        n_blocks = blocks.scales.shape[1]
        stored_shape = (out, n_blocks, BLOCK_SIZE * bits // 8)
        n_rows, even = self._even_rows(x)
        y = graph.op(
            "MatMulNBits",
            even,
            graph.tensor(f"{name}.values", stored_shape, [block_bytes(blocks, bits)]),
            graph.tensor(f"{name}.scales", (out * n_blocks,), [blocks.scales.reshape(-1)]),
            domain=CONTRIB,
            K=into,
            N=out,
            bits=bits,
            block_size=BLOCK_SIZE,
            accuracy_level=_ACCURACY_LEVEL,
        )
        return graph.op("Slice", y, "blocks.start", n_rows)

    def _even_rows(self, x: str) -> tuple[str, str]:
        """The number of rows of `x`, `(1,)` int64, and `x` with an even number of rows.

        A row of zeros is added to an odd number. MLAS, which ORT multiplies with, has another
        kernel for a single row and for a single row after tiles of 128. That kernel adds in
        another order, so the bits of a row would depend on its batch. Measured with 4 bits on
        AVX2, ORT 1.31.
        """
        if x not in self._even:
            graph = self._graph
            n_rows = graph.op("Shape", x, end=1)
            odd = graph.op("Mod", n_rows, "blocks.two")
            pads = graph.op("Concat", "blocks.before", odd, "blocks.start", axis=0)
            self._even[x] = n_rows, graph.op("Pad", x, pads)
        return self._even[x]


def _range(prefix: str, zero_point: int) -> tuple[tuple[str, np.generic], ...]:
    """Constants of a range of bytes, by name.

    They are the zero point, and the factors from a row's largest and smallest entry to the scale
    that its positive and its negative entries need.
    """
    return (
        (f"{prefix}middle", np.uint8(zero_point)),
        (f"{prefix}above", np.float32(1 / (255 - zero_point))),
        (f"{prefix}below", np.float32(-1 / zero_point)),
    )
