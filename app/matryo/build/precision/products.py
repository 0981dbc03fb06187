"""Writes the ONNX nodes of products of activations with weights, in one precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import BLOCK_SIZE, FloatArray, Weights
from matryo.build.emit import CONTRIB, GraphBuilder
from matryo.build.precision.quantize import (
    LEAST_STEP,
    block_bytes,
    quantize_blocks,
    quantize_rows,
)
from matryo.core.choices import Precision

_BITS: dict[Precision, int] = {"q8": 8, "q4": 4}
# MatMulNBits quantises activations to int8 at this level; at lower ones it computes in float.
_ACCURACY_LEVEL = 4
_MIDDLE = 128
# GELU gives nothing under -0.17: most of the range goes to what is positive.
_ONE_SIDED_MIDDLE = 32
_FINER = 254
# Of 0 (as they come) to 1 (all channels equally wide); SmoothQuant, arXiv:2211.10438, eq. 4,
# with the norm's own parameters in place of calibration data.
_SMOOTHING = 0.75


@dataclass(frozen=True, slots=True)
class Operand:
    """The left side of products, prepared once for all of them.

    Attributes:
        values: `(N, K)`; float32, or of `int8` uint8.
        steps: `(N, 1)` float32, what one unit of a row's values is worth; of `int8` alone.
        middle: uint8 scalar that stands for 0; of `int8` alone.
        channels: `(K,)` that the values were divided by and the weights are to be multiplied
            by; None for ones.
        source: what the values are rounded from; empty if they cannot be rounded finer.
        row_steps: `steps` as `(N,)`, before any `times`.
    """

    values: str
    steps: str = ""
    middle: str = ""
    channels: FloatArray | None = None
    source: str = ""
    row_steps: str = ""


class Products:
    """Writes products of activations with weights, in one precision.

    Args:
        graph: under construction.
        weights: under the architecture's own names.
        precision: of every product.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights, precision: Precision) -> None:
        self._graph = graph
        self._weights = weights
        self._precision: Precision = precision
        self._operands: dict[tuple[str, bool, str], Operand] = {}
        self._rests: dict[str, str] = {}
        self._evened: dict[str, tuple[str, str]] = {}
        if precision == "int8":
            for name, value in (
                ("one", np.float32(1)),
                ("finer", np.float32(1 / _FINER)),
                ("least_step", np.array([LEAST_STEP])),
                *_range("", _MIDDLE),
                *_range("one_sided_", _ONE_SIDED_MIDDLE),
                ("last_axis", np.array([-1], np.int64)),
            ):
                graph.constant(f"int8.{name}", np.array(value))
        if precision in _BITS:
            for name, value in (("start", [0]), ("before", [0, 0]), ("two", [2])):
                graph.constant(f"blocks.{name}", np.array(value, np.int64))

    def words(self, table: tuple[int, int], rows: Iterable[FloatArray], ids: str) -> str:
        """Look up rows of the word table; `(N, H)` float32.

        Every precision but fp32 keeps the table in 8-bit blocks of 32. They take a quarter of
        the memory, and their rounding is far below that of the products.

        Args:
            table: `(vocab, H)`.
            rows: the table, in pieces of some rows.
            ids: `(N,)` int64.
        """
        graph = self._graph
        n_blocks = -(-table[1] // BLOCK_SIZE)
        if self._precision == "fp32" or table[1] % BLOCK_SIZE:
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
        self, x: str, *, norm: str = "", one_sided: bool = False, times: str = ""
    ) -> Operand:
        """`x`, `(N, K)` with at least one row, ready for products; prepared once.

        Args:
            x: activations.
            norm: the layer norm that gave `x`: its weights say how wide each channel is, and
                what is evenly wide is rounded better.
            one_sided: hardly anything of `x` is negative.
            times: `(N, 1)`, by which the products are still to be multiplied.
        """
        if self._precision != "int8":
            return Operand(x)
        key = (x, one_sided, norm)
        if key not in self._operands:
            self._operands[key] = self._quantize(x, norm=norm, one_sided=one_sided)
        operand = self._operands[key]
        if not times:
            return operand
        return replace(operand, steps=self._graph.op("Mul", operand.steps, times))

    def _quantize(self, x: str, *, norm: str, one_sided: bool) -> Operand:
        graph = self._graph
        channels: FloatArray | None = None
        if norm:
            channels = self._widths(norm)
            x = graph.op("Mul", x, graph.constant(f"{norm}.smoothing", 1 / channels))
        span = "int8.one_sided_" if one_sided else "int8."
        most = graph.op("ReduceMax", x, "int8.last_axis", keepdims=0)
        least = graph.op("ReduceMin", x, "int8.last_axis", keepdims=0)
        above = graph.op("Mul", most, f"{span}above")
        below = graph.op("Mul", least, f"{span}below")
        row_steps = graph.op("Max", above, below, "int8.least_step")
        middle = f"{span}middle"
        values = self._round(x, row_steps, middle)
        steps = graph.op("Unsqueeze", row_steps, "int8.last_axis")
        return Operand(values, steps, middle, channels, x, row_steps)

    def _round(self, x: str, row_steps: str, middle: str) -> str:
        """`x` in units of each row's step, around `middle`; uint8."""
        zeros = self._zeros(row_steps, middle)
        return self._graph.op("QuantizeLinear", x, row_steps, zeros, axis=0)

    def _zeros(self, row_steps: str, middle: str) -> str:
        """`middle` for each row: ONNX wants as many zero points as scales."""
        return self._graph.op("Expand", middle, self._graph.op("Shape", row_steps))

    def _widths(self, norm: str) -> FloatArray:
        """The typical magnitude of each channel of a norm's output, evened in part; `(K,)`."""
        (size,) = self._weights.shape(f"{norm}.weight")
        scale = self._weights.read(f"{norm}.weight", (size,))
        shift = self._weights.read(f"{norm}.bias", (size,))
        reach = 3 * np.abs(scale) + np.abs(shift)  # of a normal entry, nearly always
        reach = np.maximum(reach / max(float(reach.max()), 1e-30), np.float32(1e-3))
        return np.asarray(reach**_SMOOTHING, np.float32)

    def rows(self, operand: Operand, rows: str) -> Operand:
        """Some rows of an operand; the list of rows may be empty."""
        values = self._graph.op("Gather", operand.values, rows)
        if not operand.steps:
            return Operand(values)
        steps = self._graph.op("Gather", operand.steps, rows)
        return Operand(values, steps, operand.middle, operand.channels)

    def split(self, operand: Operand, n: int, counts: str) -> list[Operand]:
        """An operand in `n` pieces with the row counts `counts`; a count may be 0."""
        values = self._graph.ops("Split", n, operand.values, counts)
        if not operand.steps:
            return [Operand(piece) for piece in values]
        steps = self._graph.ops("Split", n, operand.steps, counts)
        return [
            Operand(*piece, operand.middle, operand.channels)
            for piece in zip(values, steps, strict=True)
        ]

    def product(
        self,
        operand: Operand,
        name: str,
        size: tuple[int, int],
        *,
        fine: bool = False,
        times_steps: bool = True,
    ) -> str:
        """`operand @ weight.T`.

        Args:
            operand: the left side.
            name: the weight's.
            size: of the weight, `(out, in)`.
            fine: multiply in two terms, which doubles the work and nearly ends the rounding of
                the operand; not for one-sided operands.
            times_steps: False leaves the multiplication by `operand.steps`, if it has any, to
                the caller.
        """
        if self._precision == "fp32":
            out, into = size
            kernel = self._weights.read(name, size).T  # MatMul wants (in, out)
            weight = self._graph.tensor(name, (into, out), [kernel])
            return self._graph.op("MatMul", operand.values, weight)
        if self._precision == "int8":
            y = self._int8(operand, name, size, fine=fine)
            return self._graph.op("Mul", y, operand.steps) if times_steps else y
        return self._blocks(operand.values, name, size)

    def _int8(self, operand: Operand, name: str, size: tuple[int, int], *, fine: bool) -> str:
        graph, (out, into) = self._graph, size
        weight = self._weights.read(name, size)
        if operand.channels is not None:
            weight = weight * operand.channels
        levels, scales = quantize_rows(weight)
        stored = graph.tensor(f"{name}.values", (into, out), [np.ascontiguousarray(levels.T)])
        scale = graph.constant(f"{name}.scales", scales)

        def times(values: str) -> str:
            call = (values, stored, "int8.one", scale, operand.middle)
            return graph.op("MatMulIntegerToFloat", *call, domain=CONTRIB)

        y = times(operand.values)
        if fine:
            assert operand.middle == "int8.middle", name
            y = graph.op("Add", y, graph.op("Mul", times(self._rest(operand)), "int8.finer"))
        return y

    def _rest(self, operand: Operand) -> str:
        """An operand's rounding errors, in steps 254 times finer; `(N, K)` uint8 around 128."""
        if operand.values not in self._rests:
            graph = self._graph
            zeros = self._zeros(operand.row_steps, operand.middle)
            rounded = graph.op("DequantizeLinear", operand.values, operand.row_steps, zeros, axis=0)
            rest = graph.op("Sub", operand.source, rounded)
            steps = graph.op("Mul", operand.row_steps, "int8.finer")
            self._rests[operand.values] = self._round(rest, steps, operand.middle)
        return self._rests[operand.values]

    def _blocks(self, x: str, name: str, size: tuple[int, int]) -> str:
        graph, (out, into) = self._graph, size
        bits = _BITS[self._precision]
        # A file that holds such blocks already gives them as they are: no second rounding.
        blocks = self._weights.blocks(name, size, bits)
        blocks = blocks or quantize_blocks(self._weights.read(name, size), bits)
        n_blocks = blocks.scales.shape[1]
        shape = (out, n_blocks, BLOCK_SIZE * bits // 8)
        n_rows, even = self._even_rows(x)
        y = graph.op(
            "MatMulNBits",
            even,
            graph.tensor(f"{name}.values", shape, [block_bytes(blocks, bits)]),
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
        """The number of rows of `x`, `(1,)`, and `x` with a row of zeros added to an odd number.

        MLAS multiplies a lone row, and one left over from tiles of 128, with another kernel,
        which adds in another order (4 bits on AVX2, ORT 1.31).
        """
        if x not in self._evened:
            graph = self._graph
            n_rows = graph.op("Shape", x, end=1)
            odd = graph.op("Mod", n_rows, "blocks.two")
            pads = graph.op("Concat", "blocks.before", odd, "blocks.start", axis=0)
            self._evened[x] = n_rows, graph.op("Pad", x, pads)
        return self._evened[x]


def _range(kind: str, middle: int) -> tuple[tuple[str, np.generic], ...]:
    """Constants of a range of bytes: the byte for 0, and the factors to steps on either side."""
    return (
        (f"{kind}middle", np.uint8(middle)),
        (f"{kind}above", np.float32(1 / (255 - middle))),
        (f"{kind}below", np.float32(-1 / middle)),
    )
