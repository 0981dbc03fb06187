"""Quantisers in numpy: weights as bytes by rows, or in blocks of 32, as ONNX Runtime reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import BLOCK_SIZE, Blocks, FloatArray

LEAST_STEP = np.float32(1e-20)
"""The scale of a row of zeros, so that dividing by a scale is always allowed."""


def quantize_rows(weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """A matrix `(out, in)` as int8 levels, and the float32 scale of each row, `(out,)`.

    The levels are symmetric around 0, and two neighbours of one sign add up to 128 at most.

    Args:
        weight: float32, finite.
    """
    # CPUs without VNNI add the products of two neighbours in 16 bits, which saturate; but
    # 255 x 128 < 2^15. Rows of normal entries lose a quarter of their resolution to this bound,
    # and every CPU gives the same values.
    pairs = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2))).reshape(len(weight), -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2))
    # 127, as rounding may add half a level to each of the two.
    scales = np.maximum(sums.max(1), LEAST_STEP) / np.float32(127)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def quantize_blocks(weight: FloatArray, bits: int) -> Blocks:
    """A matrix `(out, in)` in symmetric blocks; zeros complete the last block of a row.

    The entry of largest magnitude gets the end of the range that has one value more, so that
    all 2^bits values are used, as in GGML's Q4_0.

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


def block_bytes(blocks: Blocks, bits: int) -> NDArray[np.uint8]:
    """The values of blocks as `MatMulNBits` reads them; `(out, in * bits / 8)`.

    Two values of 4 bits share a byte, the first in the low half.
    """
    if bits == 8:  # noqa: PLR2004
        return blocks.values
    low, high = blocks.values[:, 0::2], blocks.values[:, 1::2]
    return (low | (high << 4)).astype(np.uint8)
