"""Local attention: a token attends to the tokens at most `window` positions away.

Scores of all pairs would take T² memory for each head. A text longer than a block is therefore cut
into blocks of `2 * window` queries, and a block gets only the keys that a query of the block may
attend to. All blocks have one shape, so memory grows with T, and a block has the same bits in
every run.

Source: Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray
from matryo.build.emit import CONTRIB
from matryo.engine.onnx.interface import ATTENTION_MASK, INPUT_IDS

# --- the graph


class LocalAttention:
    """Writes local attention into a graph. The layers share one object, and so the indices in it.

    The keys of a block are its own tokens, then the `window` tokens after the block, then the
    `window` tokens before the block. In this order the tokens of a text that fits in a block are
    the first keys. Such a text therefore has the same bits in a block as in a run without blocks:
    both are masked attention with more or fewer masked keys at the end.

    Args:
        net: the layers of the graph.
        window: most positions between a query and a key, at least 1.
        num_heads: number of heads.
    """

    def __init__(self, net: Layers, window: int, num_heads: int) -> None:
        graph = self._graph = net.graph
        self._net, self._num_heads = net, num_heads
        size = 2 * window

        def constant(name: str, value: int | list[int]) -> str:
            return graph.constant(f"local.{name}", np.array(value, np.int64))

        zero, one, every = constant("zero", 0), constant("one", 1), constant("every", [-1])
        n_texts = graph.op("Shape", INPUT_IDS, end=1)
        n_tokens = graph.op("Shape", INPUT_IDS, start=1)  # T, with the padding of the run
        self._flat = graph.op("Reshape", ATTENTION_MASK, every)
        self._mask = graph.op("Cast", ATTENTION_MASK, to=TensorProto.INT32)
        within = graph.constant("local.size", np.array([size], np.int64))
        self._fits = graph.op("LessOrEqual", n_tokens, within)

        queries, keys = np.arange(size), block_keys(window)
        least = np.finfo(np.float32).min
        band = np.where(np.abs(queries[:, None] - keys) <= window, np.float32(0), least)
        # (1, 1, 2 window, 4 window): the same for every block and head
        self._band = graph.constant("local.band", band[None, None].astype(np.float32))
        rows = graph.op("Min", n_tokens, within)
        corner = graph.op("Concat", rows, rows, axis=0)
        start, axes = constant("start", [0, 0]), constant("axes", [2, 3])
        self._short_band = graph.op("Slice", self._band, start, corner, axes)

        # The blocks of a text in the run: `n_blocks` for each text, padding included.
        span = graph.op("Add", n_tokens, constant("span", size - 1))
        n_blocks = graph.op("Div", span, within)
        count = graph.op("Squeeze", graph.op("Mul", n_blocks, within))
        starts = graph.op("Range", zero, count, constant("step", size))
        starts = graph.op("Unsqueeze", starts, every)  # (n_blocks, 1)
        first = graph.op(
            "Mul", graph.op("Range", zero, graph.op("Squeeze", n_texts), one), n_tokens
        )
        first = graph.op("Unsqueeze", first, constant("after", [1, 2]))  # (B, 1, 1)
        last = graph.op("Sub", n_tokens, one)

        def flat_rows(positions: str, width: int) -> str:
            """Rows of the flattened `(B, T)`, `(B * n_blocks, width)`, nearest to positions."""
            inside = graph.op("Min", graph.op("Max", positions, zero), last)
            shape = constant(f"rows_of_{width}", [-1, width])
            return graph.op("Reshape", graph.op("Add", first, inside), shape)

        positions = graph.op("Add", starts, constant("queries", queries.tolist()))
        self._query_rows = flat_rows(positions, size)
        positions = graph.op("Add", starts, constant("keys", keys.tolist()))  # (n_blocks, 4 window)
        self._key_rows = flat_rows(positions, 2 * size)
        before_end = graph.op("Less", positions, n_tokens)
        inside = graph.op("And", graph.op("GreaterOrEqual", positions, zero), before_end)
        inside = graph.op("Cast", inside, to=TensorProto.INT64)
        inside = graph.op(
            "Tile", inside, graph.op("Concat", n_texts, constant("once", [1]), axis=0)
        )
        real = graph.op("Mul", graph.op("Gather", self._flat, self._key_rows), inside)
        self._key_mask = graph.op("Cast", real, to=TensorProto.INT32)  # (B * n_blocks, 4 window)

        # The row of each real token in the flattened blocks.
        text = graph.op("Div", net.token_indices, n_tokens)
        token = graph.op("Mod", net.token_indices, n_tokens)
        self._block_rows = graph.op("Add", graph.op("Mul", text, count), token)

    def attention(self, q: str, k: str, v: str, rotate: Callable[[str], str]) -> str:
        """Local multi-head attention within each text; `(N, H)`.

        Args:
            q: queries, `(N, H)`.
            k: keys, `(N, H)`.
            v: values, `(N, H)`.
            rotate: applies rotary positions to queries or keys, `(B, T, H)`.
        """
        graph, net = self._graph, self._net
        x, y, z = (net.restore_padding(part) for part in (q, k, v))
        x, y = rotate(x), rotate(y)

        def flatten(part: str) -> str:
            return net.flatten(part)

        def short() -> str:
            out = self._attend(x, y, z, self._mask, self._short_band)
            return graph.op("Gather", flatten(out), net.token_indices)

        def blocks() -> str:
            queries = graph.op("Gather", flatten(x), self._query_rows)
            keys, values = (graph.op("Gather", flatten(part), self._key_rows) for part in (y, z))
            out = self._attend(queries, keys, values, self._key_mask, self._band)
            return graph.op("Gather", flatten(out), self._block_rows)

        return graph.when(self._fits, short, blocks)

    def _attend(self, q: str, k: str, v: str, mask: str, band: str) -> str:
        call = (q, k, v, "", mask, band)
        return self._graph.op(
            "MultiHeadAttention", *call, domain=CONTRIB, num_heads=self._num_heads
        )


def block_keys(window: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions of the keys of a block, relative to the block's first query; `(4 * window,)`."""
    own_and_after = np.arange(3 * window)
    return np.concatenate([own_and_after, np.arange(-window, 0)])


# --- the numpy forward


def np_local_attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    num_heads: int,
    lengths: Sequence[int],
    window: int,
) -> FloatArray:
    """Local multi-head attention within each text, one token after the other.

    Args:
        q: queries, `(N, H)`, one text after the other.
        k: keys, likewise.
        v: values, likewise.
        num_heads: number of heads.
        lengths: number of tokens of each text.
        window: most positions between a query and a key.

    Returns:
        `(N, H)` float32.
    """
    heads = [x.reshape(len(x), num_heads, -1) for x in (q, k, v)]  # (N, A, D)
    scale = np.float32(math.sqrt(q.shape[1] // num_heads))
    out, start = np.empty_like(heads[0]), 0
    for n_tokens in lengths:
        for token in range(n_tokens):
            near = slice(start + max(token - window, 0), start + min(token + window + 1, n_tokens))
            scores = np.einsum("ad,nad->an", heads[0][start + token], heads[1][near]) / scale
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            out[start + token] = np.einsum("an,nad->ad", scores, heads[2][near])
        start += n_tokens
    return out.reshape(q.shape)
