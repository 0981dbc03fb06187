"""Rotary positions that several architectures share, as tables, ONNX nodes and a numpy function.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from matryo.build.checkpoint import FloatArray
from matryo.build.emit import CONTRIB, GraphBuilder


def rotary_tables(
    head_size: int, theta: float, n_tokens: int, *, slower: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of the positions 0 to `n_tokens` - 1; each `(n_tokens, head_size / 2)`.

    Args:
        head_size: width of a head, an even number; positions apply to all of it.
        theta: the rotary base.
        n_tokens: number of positions.
        slower: divides every frequency.
    """
    # Angles are float32, as in the references. Exact angles would differ from the references' by
    # 5e-4 at position 8000.
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    frequencies = frequencies / np.float32(slower)
    angles = np.outer(np.arange(n_tokens, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


class Rotary(NamedTuple):
    """Rotary positions, as names of values in the graph.

    Attributes:
        first: `(1,)` int64, the position of the first token.
        cos: cosines, `(positions, head_size / 2)`.
        sin: sines, likewise.
    """

    first: str
    cos: str
    sin: str


def emit_rotate(graph: GraphBuilder, x: str, rotary: Rotary, num_heads: int) -> str:
    """`x`, `(B, T, H)`, with rotary positions; `(B, T, H)`.

    Args:
        graph: the graph under construction.
        x: queries or keys.
        rotary: the positions.
        num_heads: number of heads in `x`.
    """
    # interleaved=0 pairs the first half of each head with the second half, as GPT-NeoX does.
    return graph.op(
        "RotaryEmbedding",
        x,
        *rotary,
        domain=CONTRIB,
        num_heads=num_heads,
        interleaved=0,
    )


def np_rotate(x: FloatArray, cos: FloatArray, sin: FloatArray, num_heads: int) -> FloatArray:
    """`x`, `(N, H)`, with rotary positions.

    Args:
        x: queries or keys.
        cos: `(N, head_size / 2)`, the cosines of each token's position.
        sin: likewise, the sines.
        num_heads: number of heads in `x`.
    """
    a, b = np.split(x.reshape(len(x), num_heads, -1), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = [a * cos - b * sin, b * cos + a * sin]
    return np.concatenate(rotated, axis=-1, dtype=np.float32).reshape(x.shape)
