"""How a product's weights are written in each precision.

`fp32` is a plain MatMul. `int8` multiplies bytes: weights have a scale for each column,
activations one for each row, so that no row depends on another. `q8` and `q4` keep weights in
blocks of 32 along a row, each with a scale of its own, for `MatMulNBits`, which rounds each
row of activations by itself, in the same blocks. In all of them a text's vector does not
depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.core.manifest import Precision
from app.graph.checkpoint import BLOCK_SIZE, Blocks, FloatArray, Weights
from app.graph.emit import CONTRIB, GraphBuilder

_BITS: dict[Precision, int] = {"q8": 8, "q4": 4}
# MatMulNBits quantises activations to int8 at this level; at lower ones it computes in float.
_ACCURACY_LEVEL = 4


@dataclass(frozen=True, slots=True)
class Operand:
    """The left side of products, prepared once for all of them.

    Attributes:
        values: `(N, K)`; float32, or of `int8` uint8 around 128.
        peaks: `(N, 1)` float32, each row's largest magnitude; of `int8` alone.
        rests: `(N, K)` uint8 around 128, what rounding `values` left, 254 times finer; of
            `int8` where an operand is wanted fine.
    """

    values: str
    peaks: str = ""
    rests: str = ""


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
        self._operands: dict[tuple[str, bool], Operand] = {}
        if precision == "int8":
            for name, value in (
                ("step", np.float32(1 / 127)),
                ("fine_step", np.float32(1 / 127 / 254)),
                ("least_peak", np.float32(1e-20)),
                ("middle", np.uint8(128)),
            ):
                graph.constant(f"int8.{name}", np.array(value))
            graph.constant("int8.last_axis", np.array([-1], np.int64))

    def operand(self, x: str, *, fine: bool = False) -> Operand:
        """`x`, `(N, K)` with at least one row, ready for products; prepared once.

        Args:
            x: activations.
            fine: in two terms, twice the work and next to no rounding, where that matters.
        """
        if self._precision != "int8":
            return Operand(x)
        if (x, fine) not in self._operands:
            self._operands[x, fine] = self._quantize(x, fine=fine)
        return self._operands[x, fine]

    def _quantize(self, x: str, *, fine: bool) -> Operand:
        graph = self._graph
        peaks = graph.op("ReduceMax", graph.op("Abs", x), "int8.last_axis", keepdims=1)
        peaks = graph.op("Max", peaks, "int8.least_peak")
        scaled = graph.op("Div", x, peaks)
        grid = ("int8.step", "int8.middle")
        values = graph.op("QuantizeLinear", scaled, *grid)
        if not fine:
            return Operand(values, peaks)
        left = graph.op("Sub", scaled, graph.op("DequantizeLinear", values, *grid))
        rests = graph.op("QuantizeLinear", left, "int8.fine_step", "int8.middle")
        return Operand(values, peaks, rests)

    def rows(self, operand: Operand, rows: str) -> Operand:
        """Some rows of an operand; there may be none."""
        parts = (operand.values, operand.peaks, operand.rests)
        return Operand(*(self._graph.op("Gather", part, rows) if part else "" for part in parts))

    def split(self, operand: Operand, n: int, counts: str) -> list[Operand]:
        """An operand in `n` pieces of so many rows each; a piece may have none."""
        parts = (operand.values, operand.peaks, operand.rests)
        pieces = [self._graph.ops("Split", n, x, counts) if x else [""] * n for x in parts]
        return [Operand(*piece) for piece in zip(*pieces, strict=True)]

    def product(self, operand: Operand, name: str, size: tuple[int, int]) -> str:
        """`operand @ weight.T`; `size` is the weight's `(out, in)`, its name the initializer's."""
        if self._precision == "fp32":
            out, into = size
            kernel = self._weights.read(name, size).T  # MatMul wants (in, out)
            weight = self._graph.tensor(name, (into, out), [kernel])
            return self._graph.op("MatMul", operand.values, weight)
        if self._precision == "int8":
            return self._int8(operand, name, size)
        return self._blocks(operand.values, name, size)

    def _int8(self, operand: Operand, name: str, size: tuple[int, int]) -> str:
        graph, (out, into) = self._graph, size
        weight = self._weights.read(name, size)
        scales = np.maximum(np.abs(weight).max(1), np.float32(1e-20)) / np.float32(127)
        levels = np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8)
        stored = graph.tensor(f"{name}.values", (into, out), [np.ascontiguousarray(levels.T)])
        scale = graph.constant(f"{name}.scales", scales.astype(np.float32))

        def integers(values: str, step: str) -> str:
            call = (values, stored, step, scale, "int8.middle")
            return graph.op("MatMulIntegerToFloat", *call, domain=CONTRIB)

        y = integers(operand.values, "int8.step")
        if operand.rests:
            y = graph.op("Add", y, integers(operand.rests, "int8.fine_step"))
        return graph.op("Mul", y, operand.peaks)

    def _blocks(self, x: str, name: str, size: tuple[int, int]) -> str:
        graph, (out, into) = self._graph, size
        bits = _BITS[self._precision]
        # A file that holds such blocks already gives them as they are: no second rounding.
        blocks = self._weights.blocks(name, size, bits)
        blocks = blocks or quantize_blocks(self._weights.read(name, size), bits)
        n_blocks = blocks.scales.shape[1]
        packed = (out, n_blocks, BLOCK_SIZE * bits // 8)
        return graph.op(
            "MatMulNBits",
            x,
            graph.tensor(f"{name}.values", packed, [_pack(blocks, bits)]),
            graph.tensor(f"{name}.scales", (out * n_blocks,), [blocks.scales.reshape(-1)]),
            domain=CONTRIB,
            K=into,
            N=out,
            bits=bits,
            block_size=BLOCK_SIZE,
            accuracy_level=_ACCURACY_LEVEL,
        )


def quantize_blocks(weight: FloatArray, bits: int) -> Blocks:
    """A matrix `(out, in)` in symmetric blocks; a row that ends within one is filled up with 0.

    The entry of largest magnitude lands on the end of the range that has one value more, so
    that all 2^bits values are used, as in GGML's Q4_0.

    Args:
        weight: float32, finite.
        bits: 4 or 8.
    """
    out, into = weight.shape
    middle = 1 << (bits - 1)
    padded = np.pad(weight, ((0, 0), (0, -into % BLOCK_SIZE)))
    blocks = padded.reshape(out, -1, BLOCK_SIZE)
    largest = np.abs(blocks).argmax(-1, keepdims=True)
    scales = np.take_along_axis(blocks, largest, -1) / np.float32(-middle)  # (out, n_blocks, 1)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = np.clip(np.rint(blocks * inverse) + middle, 0, 2 * middle - 1).astype(np.uint8)
    return Blocks(values.reshape(padded.shape), scales[..., 0])


def _pack(blocks: Blocks, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Values as MatMulNBits wants them: of 4 bits two in a byte, the first in the low half."""
    if bits == 8:  # noqa: PLR2004
        return blocks.values
    low, high = blocks.values[:, 0::2], blocks.values[:, 1::2]
    return (low | (high << 4)).astype(np.uint8)
