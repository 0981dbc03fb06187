"""How a product's weights are written in each precision.

`fp32` is a plain MatMul. `q8` and `q4` keep weights in blocks of 32 along a row, each with a
scale of its own, for `MatMulNBits`: each row of activations is quantised by itself, in the
same blocks, so that a text's vector does not depend on its company.
"""

from __future__ import annotations

import numpy as np

from app.core.manifest import Precision
from app.graph.checkpoint import BLOCK_SIZE, Blocks, FloatArray, Weights
from app.graph.emit import CONTRIB, GraphBuilder

_BITS: dict[Precision, int] = {"q8": 8, "q4": 4}
# MatMulNBits quantises activations to int8 at this level; at lower ones it computes in float.
_ACCURACY_LEVEL = 4


def emit_product(
    graph: GraphBuilder,
    weights: Weights,
    x: str,
    name: str,
    size: tuple[int, int],
    precision: Precision,
) -> str:
    """`x @ weight.T`; `size` is the weight's `(out, in)`, and its name the initializer's too."""
    out, into = size
    if precision == "fp32":
        kernel = weights.read(name, size).T  # MatMul wants (in, out)
        return graph.op("MatMul", x, graph.tensor(name, (into, out), [kernel]))
    bits = _BITS[precision]
    # A file that holds such blocks already gives them as they are: no second rounding.
    blocks = weights.blocks(name, size, bits) or quantize_blocks(weights.read(name, size), bits)
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
