"""Pieces that the architectures share: the ONNX nodes, and the same in numpy.

Linear weights are `(out, in)` in checkpoints and `(in, out)` in the graph, as MatMul wants.
Fusions were measured before they were chosen; docs/LOG.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import CONTRIB, GraphBuilder
from matryo.build.limits import MAX_PADDING_ROWS
from matryo.build.precision import Operand, Products
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import APPLY_MASK, ATTENTION_MASK, INPUT_IDS

# --- the graph


class Layers:
    """What every architecture emits with: the graph, the weights, and their precision.

    Real tokens are packed: everything but attention works on `(N, H)`, token after token and
    text after text, so that padding costs attention alone and texts of any lengths may share
    a run.

    Args:
        graph: under construction; the inputs are declared here.
        weights: under the architecture's own names.
        hidden_size: `H`.
        precision: of the products.

    Attributes:
        products: writes products in the precision asked.
        places: `(N,)` int64, where in the flattened `(B, T)` each real token stands.
    """

    def __init__(
        self, graph: GraphBuilder, weights: Weights, hidden_size: int, precision: Precision
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.products = Products(graph, weights, precision)
        graph.input(INPUT_IDS, TensorProto.INT64, ("B", "T"))
        graph.input(ATTENTION_MASK, TensorProto.INT64, ("B", "T"))
        # Whether attention looks at the mask at all. False is for one text alone, without
        # padding: attention then takes ORT's flash path, whose memory does not grow with T².
        # It defaults to true, so that other tools can run the graph as usual.
        graph.input(APPLY_MASK, TensorProto.BOOL, ())
        graph.constant(APPLY_MASK, np.array(True))  # noqa: FBT003 - the input's default value
        self._mask = graph.op("Cast", ATTENTION_MASK, to=TensorProto.INT32)

        def constant(name: str, value: int | list[int]) -> str:
            return graph.constant(name, np.array(value, np.int64))

        self._every, zero, one = constant("every", [-1]), constant("zero", 0), constant("one", 1)
        flat = graph.op("Reshape", ATTENTION_MASK, self._every)
        self.places = graph.op("Reshape", graph.op("NonZero", flat), self._every)
        rows = graph.op("Sub", graph.op("CumSum", flat, zero), one)
        self._rows = graph.op("Max", rows, zero)  # (B*T,) into (N,); padding points anywhere
        self._flat = constant("flat", [-1, hidden_size])
        width = constant("width", [hidden_size])
        self._shape = graph.op("Concat", graph.op("Shape", INPUT_IDS), width, axis=0)  # B, T, H

    def embed_tokens(self, table: tuple[int, int], type_vocab_size: int) -> str:
        """Rows of the word table, token type 0 folded in; `table` is `(vocab, hidden)`.

        Returns `(N, H)`.
        """
        token_type = _token_type(self.weights, (type_vocab_size, table[1]))
        table = (word_rows(self.weights, table), table[1])
        rows = (piece + token_type for piece in self.weights.read_rows("word_embeddings", table))
        return self.products.words(table, rows, self.pack(INPUT_IDS))

    def pack(self, x: str) -> str:
        """The entries of `(B, T)` that stand at real tokens; `(N,)`."""
        return self.graph.op("Gather", self.graph.op("Reshape", x, self._every), self.places)

    def unpack(self, x: str) -> str:
        """`(N, H)` to `(B, T, H)`; what stands at padding is finite, and means nothing."""
        return self._spread(self.graph.op("Gather", x, self._rows))

    def _spread(self, x: str) -> str:
        """`(B*T, H)` to `(B, T, H)`."""
        return self.graph.op("Reshape", x, self._shape)

    def linear(
        self,
        x: str | Operand,
        name: str,
        size: tuple[int, int],
        *,
        bias: bool,
        fine: bool = False,
    ) -> str:
        """`x @ weight.T (+ bias)`; `size` is the checkpoint's `(out, in)`.

        `fine` is for products that would suffer from an input rounded to 8 bits.
        """
        operand = self.products.operand(x) if isinstance(x, str) else x
        y = self.products.product(operand, f"{name}.weight", size, fine=fine)
        return self.graph.op("Add", y, self.vector(f"{name}.bias", size[0])) if bias else y

    def vector(self, name: str, size: int) -> str:
        """A bias or a scale, as an initializer."""
        return self.graph.constant(name, self.weights.read(name, (size,)))

    def layer_norm(self, x: str, name: str, *, size: int, eps: float) -> str:
        """Affine layer norm over the last axis."""
        scale, shift = self.vector(f"{name}.weight", size), self.vector(f"{name}.bias", size)
        return self.graph.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)

    def attention(
        self,
        q: str,
        k: str,
        v: str,
        *,
        num_heads: int,
        rotate: Callable[[str], str] = lambda x: x,
    ) -> str:
        """Bidirectional attention within each text; `(N, H)` each.

        Args:
            q: queries.
            k: keys.
            v: values.
            num_heads: heads.
            rotate: puts positions into `(B, T, H)`.
        """
        graph, op = self.graph, "MultiHeadAttention"

        def masked() -> str:
            x, y, z = (self.unpack(part) for part in (q, k, v))
            call = (rotate(x), rotate(y), z, "", self._mask)
            out = graph.op(op, *call, domain=CONTRIB, num_heads=num_heads)
            return graph.op("Gather", graph.op("Reshape", out, self._flat), self.places)

        def plain() -> str:
            x, y, z = (self._spread(part) for part in (q, k, v))
            out = graph.op(op, rotate(x), rotate(y), z, domain=CONTRIB, num_heads=num_heads)
            return graph.op("Reshape", out, self._flat)

        return graph.when(APPLY_MASK, masked, plain)

    def gelu(self, x: str, bias: str | None = None) -> str:
        """Exact GELU, `x/2 (1 + erf(x/√2))`, of `x (+ bias)`; tanh-GELU differs by 5e-4."""
        if bias is None:
            return self.graph.op("Gelu", x, domain=CONTRIB)
        return self.graph.op("BiasGelu", x, bias, domain=CONTRIB)

    def silu(self, x: str) -> str:
        """`x * sigmoid(x)`."""
        return self.graph.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)


def word_rows(weights: Weights, table: tuple[int, int]) -> int:
    """Rows of the word table in the checkpoint: all, or without the unused ones at its end.

    Published tables are padded to a round number; GGUF files often leave the padding out.

    Raises:
        CheckpointMismatch: it has more rows than the config, or lacks more than padding.
    """
    rows, columns = weights.shape("word_embeddings")
    fits = table[0] - MAX_PADDING_ROWS < rows <= table[0] and columns == table[1]
    return rows if fits else table[0]  # reading says what does not fit


# --- the same in numpy


def np_embed_tokens(
    weights: Weights,
    table: tuple[int, int],
    type_vocab_size: int,
    input_ids: NDArray[np.int64],
) -> FloatArray:
    """Rows of the word table plus token type 0; `(N, H)`."""
    table = (word_rows(weights, table), table[1])
    words = weights.lookup("word_embeddings", table, input_ids.tolist())
    return words + _token_type(weights, (type_vocab_size, table[1]))


def _token_type(weights: Weights, shape: tuple[int, int]) -> FloatArray:
    # Every embedder of single texts gives each token type 0.
    return weights.read("token_type_embeddings", shape, slice(0, 1))


def np_linear(
    weights: Weights, x: FloatArray, name: str, size: tuple[int, int], *, bias: bool
) -> FloatArray:
    """`x @ weight.T (+ bias)`."""
    y = x @ weights.read(f"{name}.weight", size).T
    return y + weights.read(f"{name}.bias", (size[0],)) if bias else y


def np_layer_norm(weights: Weights, x: FloatArray, name: str, eps: float) -> FloatArray:
    """Affine layer norm over the last axis."""
    size = (x.shape[-1],)
    scale, shift = (
        weights.read(f"{name}.weight", size),
        weights.read(f"{name}.bias", size),
    )
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * scale + shift


def np_attention(
    q: FloatArray, k: FloatArray, v: FloatArray, num_heads: int, lengths: Sequence[int]
) -> FloatArray:
    """Bidirectional attention within each text; `(N, H)` each, text after text."""
    out, start = np.empty_like(q), 0
    for n_tokens in lengths:
        rows = slice(start, start + n_tokens)
        heads = [x[rows].reshape(n_tokens, num_heads, -1).swapaxes(0, 1) for x in (q, k, v)]
        scores = heads[0] @ heads[1].swapaxes(1, 2)  # (A, T, T)
        scores /= np.float32(math.sqrt(q.shape[1] // num_heads))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out[rows] = (scores @ heads[2]).swapaxes(0, 1).reshape(n_tokens, -1)
        start += n_tokens
    return out


def np_gelu(x: FloatArray) -> FloatArray:
    """Exact GELU."""
    erf = cast("NDArray[Any]", np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2))))
    return (x * (1 + erf) / 2).astype(np.float32)


def np_silu(x: FloatArray) -> FloatArray:
    """`x * sigmoid(x)`."""
    return x / (np.float32(1) + np.exp(-x))
