"""Layers that the architectures share, as ONNX nodes and as numpy functions.

Linear weights are `(out, in)` in checkpoints and `(in, out)` in the graph, because MatMul
multiplies by the right side as it is. docs/LOG.md has the measurements behind the choice of
fused operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from matryo.build.arch._rotary import Rotary, emit_rotate
from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import CONTRIB, NATIVE, GraphBuilder
from matryo.build.limits import MAX_PADDING_ROWS
from matryo.build.precision import LANES, Fused, Operand, Products
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import APPLY_MASK, ATTENTION_MASK, INPUT_IDS

_MOST_HEAD = 256  # width of a head that the native attention takes

# --- the graph


class Layers:
    """Writes the layers of an architecture into a graph.

    Every layer except attention works without padding, on `(N, H)`: the N real tokens of all
    texts, one text after the other. Only attention computes padding. Texts of any lengths may
    therefore share a run.

    Args:
        graph: the graph under construction. The constructor declares its inputs.
        weights: the weights, under the architecture's names.
        hidden_size: `H`.
        precision: the precision of the matrix products.

    Attributes:
        graph: the graph under construction.
        weights: the weights, under the architecture's names.
        products: writes the matrix products in `precision`.
        token_indices: `(N,)` int64, the index of each real token in the flattened `(B, T)`.
    """

    def __init__(
        self, graph: GraphBuilder, weights: Weights, hidden_size: int, precision: Precision
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.products = Products(graph, weights, precision)
        graph.input(INPUT_IDS, TensorProto.INT64, ("B", "T"))
        graph.input(ATTENTION_MASK, TensorProto.INT64, ("B", "T"))
        # apply_mask says whether attention uses the mask. It is False only for a text that runs
        # alone, without padding. Attention then takes ORT's flash path, whose memory does not
        # grow with T². The default value is True, because other tools do not feed this input.
        graph.input(APPLY_MASK, TensorProto.BOOL, ())
        graph.constant(APPLY_MASK, np.array(True))  # noqa: FBT003 - the input's default value
        self._mask = graph.op("Cast", ATTENTION_MASK, to=TensorProto.INT32)
        self._lengths = ""  # (B,) int64, written by the first native attention

        def constant(name: str, value: int | list[int]) -> str:
            return graph.constant(name, np.array(value, np.int64))

        self._every, zero, one = constant("every", [-1]), constant("zero", 0), constant("one", 1)
        flat = graph.op("Reshape", ATTENTION_MASK, self._every)
        self.token_indices = graph.op("Reshape", graph.op("NonZero", flat), self._every)
        rows = graph.op("Sub", graph.op("CumSum", flat, zero), one)
        # (B*T,) int64: the row in (N, H) of each token. At padding it is some row of 0 to N - 1.
        self._rows = graph.op("Max", rows, zero)
        self._flat = constant("flat", [-1, hidden_size])
        width = constant("width", [hidden_size])
        self._shape = graph.op("Concat", graph.op("Shape", INPUT_IDS), width, axis=0)  # B, T, H

    def embed_tokens(self, table: tuple[int, int], type_vocab_size: int) -> str:
        """The word embedding of each token plus the embedding of token type 0; `(N, H)`.

        The emitted word table already contains the sum.

        Args:
            table: shape of the word table, `(vocab, H)`.
            type_vocab_size: number of token types; 0 for a model without token types.
        """
        token_type = _token_type(self.weights, (type_vocab_size, table[1]))
        table = (word_rows(self.weights, table), table[1])
        rows = (piece + token_type for piece in self.weights.read_rows("word_embeddings", table))
        return self.products.words(table, rows, self.remove_padding(INPUT_IDS))

    def remove_padding(self, x: str) -> str:
        """The entries of `x`, `(B, T)`, at real tokens; `(N,)`."""
        flat = self.graph.op("Reshape", x, self._every)
        return self.graph.op("Gather", flat, self.token_indices)

    def restore_padding(self, x: str) -> str:
        """The rows of `x`, `(N, H)`, as `(B, T, H)`; values at padding are finite but arbitrary."""
        return self._batch(self.graph.op("Gather", x, self._rows))

    def _batch(self, x: str) -> str:
        """`x`, `(B*T, H)`, reshaped to `(B, T, H)`."""
        return self.graph.op("Reshape", x, self._shape)

    def flatten(self, x: str) -> str:
        """`x`, `(..., H)`, reshaped to `(-1, H)`."""
        return self.graph.op("Reshape", x, self._flat)

    def linear(
        self,
        x: str | Operand,
        name: str,
        shape: tuple[int, int],
        *,
        bias: bool,
        fine: bool = False,
        activation: Literal["none", "gelu"] = "none",
        residual: str = "",
    ) -> str:
        """`x @ weight.T`, plus the bias if there is one; `(N, out)`.

        Args:
            x: `(N, in)`.
            name: the layer's name; the tensors are `{name}.weight` and `{name}.bias`.
            shape: shape of the weight, `(out, in)`.
            bias: whether the layer has a bias.
            fine: round `x` more finely in int8; see `Products.product`.
            activation: applied after the bias.
            residual: `(N, out)`, added at the end; empty for nothing.
        """
        operand = self.products.operand(x) if isinstance(x, str) else x
        if self.products.native:
            biases = (f"{name}.bias",) if bias else ()
            layer = Fused((f"{name}.weight",), shape, biases, activation, residual)
            return self.products.fused(operand, layer, fine=fine)
        y = self.products.product(operand, f"{name}.weight", shape, fine=fine)
        shift = self.vector(f"{name}.bias", shape[0]) if bias else None
        if activation == "gelu":
            y = self.gelu(y, shift)
        elif shift is not None:
            y = self.graph.op("Add", y, shift)
        return self.graph.op("Add", residual, y) if residual else y

    def vector(self, name: str, width: int) -> str:
        """The weight `name`, `(width,)`, as an initializer of the graph."""
        return self.graph.constant(name, self.weights.read(name, (width,)))

    def layer_norm(self, x: str, name: str, *, width: int, eps: float, bias: bool = True) -> str:
        """Layer norm over the last axis of `x`, with scale, and with shift if `bias` says so.

        Source: Ba et al. 2016, Layer Normalization, arXiv:1607.06450.
        """
        scale = self.vector(f"{name}.weight", width)
        shift = (self.vector(f"{name}.bias", width),) if bias else ()
        call = ("LayerNormalization", x, scale, *shift)
        if self.products.native and width % LANES == 0:
            return self.graph.op(*call, domain=NATIVE, epsilon=eps)
        return self.graph.op(*call, axis=-1, epsilon=eps)

    def self_attention(
        self,
        x: str,
        at: str,
        *,
        num_heads: int,
        hidden: int,
        bias: bool,
        rotary: Rotary | None = None,
        score_bias: str = "",
    ) -> str:
        """Bidirectional multi-head attention of `x` on itself, within each text; `(N, H)`.

        Args:
            x: `(N, H)`.
            at: prefix of the names of the layers `query`, `key` and `value`.
            num_heads: number of heads.
            hidden: `H`.
            bias: whether the layers have a bias.
            rotary: None for a model without rotary positions.
            score_bias: see `attention`.
        """
        names, square = [at + name for name in ("query", "key", "value")], (hidden, hidden)
        size = hidden // num_heads
        step = 2 * LANES if rotary else LANES
        if self.products.native and not score_bias and size % step == 0 and size <= _MOST_HEAD:
            biases = tuple(f"{name}.bias" for name in names) if bias else ()
            joint = Fused(tuple(f"{name}.weight" for name in names), square, biases)
            qkv = self.products.fused(self.products.operand(x), joint, fine=True)
            tables = (rotary.cos, rotary.sin) if rotary else ()
            return self._native_attention(qkv, num_heads, size, tables)
        # q, k and v are separate products: splitting one joint product costs more (docs/LOG.md).
        q, k, v = (
            self.linear(x, name, square, bias=bias, fine=name.endswith("value")) for name in names
        )

        def rotate(y: str) -> str:
            return emit_rotate(self.graph, y, rotary, num_heads) if rotary else y

        return self.attention(q, k, v, num_heads=num_heads, rotate=rotate, bias=score_bias)

    def _native_attention(
        self, qkv: str, num_heads: int, size: int, rotary: tuple[str, ...]
    ) -> str:
        if not self._lengths:
            last = self.graph.constant("length_axes", np.array([1], np.int64))
            self._lengths = self.graph.op("ReduceSum", ATTENTION_MASK, last, keepdims=0)
        return self.graph.op(
            "SelfAttention",
            qkv,
            self._lengths,
            *rotary,
            domain=NATIVE,
            num_heads=num_heads,
            floats=int(self.products.precision == "fp32"),
            scale=1 / math.sqrt(size),
        )

    def attention(
        self,
        q: str,
        k: str,
        v: str,
        *,
        num_heads: int,
        rotate: Callable[[str], str] = lambda x: x,
        bias: str = "",
    ) -> str:
        """Bidirectional multi-head attention within each text; `(N, H)`.

        Args:
            q: queries, `(N, H)`.
            k: keys, `(N, H)`.
            v: values, `(N, H)`.
            num_heads: number of heads.
            rotate: applies rotary positions to queries or keys, `(B, T, H)`.
            bias: what is added to the scaled scores, `(1, A, T, T)`; empty for nothing. With a bias
                ORT has no flash path, so a long text needs memory for `(A, T, T)` scores.

        Source: Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, section 3.2.
        """
        graph, op = self.graph, "MultiHeadAttention"
        added = (bias,) if bias else ()

        def masked() -> str:
            x, y, z = (self.restore_padding(part) for part in (q, k, v))
            call = (rotate(x), rotate(y), z, "", self._mask, *added)
            out = graph.op(op, *call, domain=CONTRIB, num_heads=num_heads)
            return graph.op("Gather", graph.op("Reshape", out, self._flat), self.token_indices)

        def plain() -> str:
            x, y, z = (self._batch(part) for part in (q, k, v))
            call = (rotate(x), rotate(y), z, *(("", "", *added) if bias else ()))
            out = graph.op(op, *call, domain=CONTRIB, num_heads=num_heads)
            return graph.op("Reshape", out, self._flat)

        return graph.when(APPLY_MASK, masked, plain)

    def gelu(self, x: str, bias: str | None = None) -> str:
        """Exact GELU, `x/2 (1 + erf(x/√2))`, of `x`, or of `x + bias` if there is a bias.

        The approximation of GELU by tanh would differ by up to 5e-4.

        Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv:1606.08415.
        """
        if bias is None:
            return self.graph.op("Gelu", x, domain=CONTRIB)
        return self.graph.op("BiasGelu", x, bias, domain=CONTRIB)

    def silu(self, x: str) -> str:
        """SiLU, `x * sigmoid(x)`. ORT calls it QuickGelu with alpha 1."""
        return self.graph.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)


def word_rows(weights: Weights, table: tuple[int, int]) -> int:
    """The number of rows that the word table has in the checkpoint.

    Published models pad the table to a round number of rows. No token id uses the padding, and
    GGUF files often leave it out. The checkpoint's number is returned if it is at most the
    config's, and by less than `MAX_PADDING_ROWS` rows smaller. Otherwise the config's number is
    returned, and reading the table then raises CheckpointMismatch.

    Args:
        weights: the weights, under the architecture's names.
        table: shape of the word table by the config, `(vocab, H)`.
    """
    rows, columns = weights.shape("word_embeddings")
    fits = table[0] - MAX_PADDING_ROWS < rows <= table[0] and columns == table[1]
    return rows if fits else table[0]


# --- the numpy forward


def np_embed_tokens(
    weights: Weights,
    table: tuple[int, int],
    type_vocab_size: int,
    input_ids: NDArray[np.int64],
) -> FloatArray:
    """The word embedding of each id plus the embedding of token type 0; `(N, H)`.

    Args:
        weights: the weights, under the architecture's names.
        table: shape of the word table by the config, `(vocab, H)`.
        type_vocab_size: number of token types; 0 for a model without token types.
        input_ids: `(N,)`.
    """
    table = (word_rows(weights, table), table[1])
    words = weights.lookup("word_embeddings", table, input_ids.tolist())
    return words + _token_type(weights, (type_vocab_size, table[1]))


def _token_type(weights: Weights, shape: tuple[int, int]) -> FloatArray:
    """The embedding of token type 0, `(1, H)`; zeros if `shape`, `(types, H)`, has no types."""
    if not shape[0]:
        return np.zeros((1, shape[1]), np.float32)
    # A model that embeds single texts gives type 0 to every token.
    return weights.read("token_type_embeddings", shape, slice(0, 1))


def np_linear(
    weights: Weights, x: FloatArray, name: str, shape: tuple[int, int], *, bias: bool
) -> FloatArray:
    """`x @ weight.T`, plus the bias if there is one; `shape` is the weight's, `(out, in)`."""
    y = x @ weights.read(f"{name}.weight", shape).T
    return y + weights.read(f"{name}.bias", (shape[0],)) if bias else y


def np_layer_norm(
    weights: Weights, x: FloatArray, name: str, eps: float, *, bias: bool = True
) -> FloatArray:
    """Layer norm over the last axis, with scale, and with shift if `bias` says so."""
    shape = (x.shape[-1],)
    scale = weights.read(f"{name}.weight", shape)
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    y = centred / np.sqrt(variance + np.float32(eps)) * scale
    return y + weights.read(f"{name}.bias", shape) if bias else y


def np_attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    num_heads: int,
    lengths: Sequence[int],
    *,
    bias: FloatArray | None = None,
) -> FloatArray:
    """Bidirectional multi-head attention within each text; see `Layers.attention`.

    Args:
        q: queries, `(N, H)`, one text after the other.
        k: keys, likewise.
        v: values, likewise.
        num_heads: number of heads.
        lengths: number of tokens of each text.
        bias: what is added to the scaled scores, `(A, T, T)` with the T of the longest text, and
            the same for a shorter text; None for nothing.

    Returns:
        `(N, H)` float32.
    """
    out, start = np.empty_like(q), 0
    for n_tokens in lengths:
        rows = slice(start, start + n_tokens)
        heads = [x[rows].reshape(n_tokens, num_heads, -1).swapaxes(0, 1) for x in (q, k, v)]
        scores = heads[0] @ heads[1].swapaxes(1, 2)  # (A, T, T)
        scores /= np.float32(math.sqrt(q.shape[1] // num_heads))
        if bias is not None:
            scores += bias[:, :n_tokens, :n_tokens]
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out[rows] = (scores @ heads[2]).swapaxes(0, 1).reshape(n_tokens, -1)
        start += n_tokens
    return out


def np_gelu(x: FloatArray) -> FloatArray:
    """Exact GELU; see `Layers.gelu`."""
    erf = cast("NDArray[Any]", np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2))))
    return (x * (1 + erf) / 2).astype(np.float32)


def np_silu(x: FloatArray) -> FloatArray:
    """SiLU, `x * sigmoid(x)`."""
    return x / (np.float32(1) + np.exp(-x))
