"""Rounds weights to bytes with a scale for each row, or to blocks of 32 with a scale for each."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import BLOCK_SIZE, Blocks, FloatArray

LEAST_SCALE = np.float32(1e-20)
"""Lower bound of a row's scale or range: without it a row of zeros would give a divisor of 0."""


Together = Literal["one", "two", "four"]
"""How many neighbours' products a CPU without VNNI adds in 16 bits.

Of `four`, the neighbours are 0, 1, 4 and 5 of 8, and 2, 3, 6 and 7: one instruction adds each pair,
and the next one adds the pairs of two steps."""


def quantize_rows(
    weight: FloatArray, together: Together = "two"
) -> tuple[NDArray[np.int8], FloatArray]:
    """A matrix as int8 levels `(out, in)`, and the float32 scale of each row, `(out,)`.

    The levels are symmetric around 0. The magnitudes of neighbours that are added together, and
    have the same sign, add up to at most 128.

    Args:
        weight: `(out, in)` float32, finite.
        together: the number of neighbours that are added together.
    """
    if together == "one":  # activations have 16 bits, and products 32
        scales = np.maximum(np.abs(weight).max(1), LEAST_SCALE) / np.float32(127)
        return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)
    # 16 bits saturate at 2^15 - 1. A sum of at most 255 x 128 = 32,640 does not saturate, so every
    # CPU gives the same values. The bound costs a row of normally distributed weights a quarter of
    # its resolution with two neighbours, and about half with four.
    step = 8 if together == "four" else 2
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % step)))
    groups = padded.reshape(len(weight), -1, step // 4 or 1, min(step // 2, 2), 2)
    sums = [np.maximum(sign * groups, 0).sum((2, 4)) for sign in (1, -1)]
    # Rounding may add half a level to each neighbour.
    most = np.float32(128 - {"two": 1, "four": 2}[together])
    scales = np.maximum(np.maximum(*sums).max((1, 2)), LEAST_SCALE) / most
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def quantize_blocks(weight: FloatArray, bits: int) -> Blocks:
    """A matrix in blocks of 32 along each row; zeros complete the last block of a row.

    The entry of largest magnitude in a block gets the value 0, which means -2^(bits - 1) scales.
    The scale is therefore negative if that entry is positive.

    Args:
        weight: `(out, in)` float32, finite.
        bits: 4 or 8.

    Source: ggml, `quantize_row_q4_0_ref` in ggml-quants.c.
    """
    out, into = weight.shape
    zero_point = 1 << (bits - 1)
    padded = np.pad(weight, ((0, 0), (0, -into % BLOCK_SIZE)))
    blocks = padded.reshape(out, -1, BLOCK_SIZE)
    largest = np.abs(blocks).argmax(-1, keepdims=True)
    scales = np.take_along_axis(blocks, largest, -1) / np.float32(-zero_point)  # (out, n_blocks, 1)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = np.clip(np.rint(blocks * inverse) + zero_point, 0, 2 * zero_point - 1).astype(np.uint8)
    return Blocks(values.reshape(padded.shape), scales[..., 0])


def block_bytes(blocks: Blocks, bits: int) -> NDArray[np.uint8]:
    """The values of blocks as `MatMulNBits` reads them; `(out, in * bits / 8)` uint8.

    Two values of 4 bits share a byte. The first of them is in the low half.

    Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
    """
    if bits == 8:  # noqa: PLR2004
        return blocks.values
    low, high = blocks.values[:, 0::2], blocks.values[:, 1::2]
    return (low | (high << 4)).astype(np.uint8)
