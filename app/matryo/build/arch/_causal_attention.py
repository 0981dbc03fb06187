"""Causal attention in which several query heads share a key head, in ONNX and in numpy.

Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; Ainslie et al. 2023,
arXiv:2305.13245 (grouped queries).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray
from matryo.build.emit import CONTRIB
from matryo.engine.onnx.interface import ATTENTION_MASK

_LEAST_HEAD_DIM = 16
"""GroupQueryAttention takes heads whose width is a multiple of this."""


class CausalAttention:
    """Writes causal attention into a graph: a token attends to itself and to earlier tokens.

    Padding is on the right, so that no real token attends to padding, and no mask is needed. The
    operator computes tiles of scores, and never holds a `(T, T)` matrix.

    Args:
        net: writes the other layers of the architecture.
        num_heads: number of query heads.
        num_kv_heads: number of key heads and of value heads; it divides `num_heads`.
        head_dim: width of a head.
    """

    def __init__(self, net: Layers, *, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        self._graph = graph = net.graph
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        # With a power of two the number of rows in a tile is even on every CPU.
        self._padded_dim = max(_LEAST_HEAD_DIM, 1 << (head_dim - 1).bit_length())

        def constant(name: str, value: list[int]) -> str:
            return graph.constant(f"causal_{name}", np.array(value, np.int64))

        # A last tile of one row would be computed by another kernel, which adds in another order.
        # Whether there is such a tile depends on the longest text of the batch. T is therefore
        # filled up to an even number, which leaves no tile of one row.
        none, every, one = constant("none", [0]), constant("every", [-1]), constant("one", [1])
        n_tokens = graph.op("Shape", ATTENTION_MASK, start=1)
        odd = graph.op("Mod", n_tokens, constant("two", [2]))
        pads = graph.op("Concat", none, none, none, odd, axis=0)
        mask = graph.op("Pad", ATTENTION_MASK, pads)  # (B, T), T even
        flat = graph.op("Reshape", mask, every)
        self._token_indices = graph.op("Reshape", graph.op("NonZero", flat), every)
        rows = graph.op("Sub", graph.op("CumSum", flat, none), one)
        self._rows = graph.op("Max", rows, none)  # (B*T,); some row of (N, H) at padding
        self._shape = graph.op("Concat", graph.op("Shape", mask), every, axis=0)  # B, T, -1

        def to_int32(x: str) -> str:
            return graph.op("Cast", x, to=TensorProto.INT32)

        n_even = graph.op("Shape", mask, start=1)
        self._length = to_int32(n_even)
        last = to_int32(graph.op("Sub", n_even, one))
        self._lasts = graph.op("Expand", last, graph.op("Shape", mask, end=1))  # (B,)
        self._by_head = constant("by_head", [-1, head_dim])
        self._flat_heads = constant("flat_heads", [-1, num_heads * head_dim])
        if self._padded_dim > head_dim:
            padding = self._padded_dim - head_dim
            self._head_pads = constant("head_pads", [0, 0, 0, padding])
            self._by_padded_head = constant("by_padded_head", [-1, self._padded_dim])
            self._slice = none, constant("head_dim", [head_dim]), one

    def per_head(self, x: str, function: Callable[[str], str]) -> str:
        """A function of single heads, on each head of `x`.

        Args:
            x: `(N, heads * head_dim)`.
            function: gets `(N * heads, head_dim)`, and gives that shape.
        """
        heads = function(self._graph.op("Reshape", x, self._by_head))
        return self._graph.op("Reshape", heads, self._graph.op("Shape", x))

    def attend(self, q: str, k: str, v: str, *, rotate: Callable[[str, int], str]) -> str:
        """Causal attention within each text; `(N, num_heads * head_dim)`.

        Args:
            q: queries, `(N, num_heads * head_dim)`.
            k: keys, `(N, num_kv_heads * head_dim)`.
            v: values, likewise.
            rotate: applies rotary positions to `(B, T, heads * head_dim)`; the number is that of
                the heads. T is even, and at most one more than that of the graph's inputs.
        """
        graph = self._graph
        x, y, z = (self._padded(part) for part in (q, k, v))
        x, y = rotate(x, self._num_heads), rotate(y, self._num_kv_heads)
        out, _, _ = graph.ops(
            "GroupQueryAttention",
            3,
            *map(self._widen, (x, y, z)),
            *("", "", self._lasts, self._length),
            domain=CONTRIB,
            num_heads=self._num_heads,
            kv_num_heads=self._num_kv_heads,
            scale=1 / math.sqrt(self._head_dim),
        )
        if self._padded_dim > self._head_dim:
            start, end, axis = self._slice
            heads = graph.op("Reshape", out, self._by_padded_head)
            out = graph.op("Slice", heads, start, end, axis)
        return graph.op("Gather", graph.op("Reshape", out, self._flat_heads), self._token_indices)

    def _padded(self, x: str) -> str:
        """The rows of `x`, `(N, H)`, as `(B, T, H)` with an even T."""
        return self._graph.op("Reshape", self._graph.op("Gather", x, self._rows), self._shape)

    def _widen(self, x: str) -> str:
        """`x`, `(B, T, heads * head_dim)`, with zeros at the end of each head."""
        if self._padded_dim == self._head_dim:
            return x
        graph = self._graph
        heads = graph.op("Pad", graph.op("Reshape", x, self._by_head), self._head_pads)
        return graph.op("Reshape", heads, self._shape)


def np_causal_attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    num_heads: int,
    num_kv_heads: int,
    lengths: Sequence[int],
) -> FloatArray:
    """Causal attention within each text; see `CausalAttention.attend`.

    Args:
        q: queries, `(N, num_heads * head_dim)`, one text after the other.
        k: keys, `(N, num_kv_heads * head_dim)`.
        v: values, likewise.
        num_heads: number of query heads.
        num_kv_heads: number of key heads and of value heads.
        lengths: number of tokens of each text.

    Returns:
        `(N, num_heads * head_dim)` float32.
    """
    out, start = np.empty_like(q), 0
    scale = np.float32(1 / math.sqrt(q.shape[1] // num_heads))
    for n_tokens in lengths:
        rows = slice(start, start + n_tokens)
        queries = q[rows].reshape(n_tokens, num_heads, -1).swapaxes(0, 1)  # (A, T, D)
        keys, values = (
            np.repeat(
                x[rows].reshape(n_tokens, num_kv_heads, -1).swapaxes(0, 1),
                num_heads // num_kv_heads,
                axis=0,
            )
            for x in (k, v)
        )
        scores = queries @ keys.swapaxes(1, 2) * scale  # (A, T, T)
        later = np.triu(np.ones((n_tokens, n_tokens), np.bool_), 1)
        scores = np.where(later, np.float32(-np.inf), scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out[rows] = (scores @ values).swapaxes(0, 1).reshape(n_tokens, -1)
        start += n_tokens
    return out
