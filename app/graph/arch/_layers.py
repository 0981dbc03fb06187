"""Pieces that the architectures share: the ONNX nodes, and the same in numpy.

Linear weights are `(out, in)` in checkpoints and `(in, out)` in the graph, as MatMul wants.
Fusions were measured before they were chosen; docs/LOG.md has the figures.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from app.graph.checkpoint import FloatArray, Weights
from app.graph.emit import CONTRIB, GraphBuilder

INPUT_IDS, ATTENTION_MASK, APPLY_MASK = "input_ids", "attention_mask", "apply_mask"
LAST_HIDDEN_STATE = "last_hidden_state"

# --- the graph


def declare_inputs(graph: GraphBuilder) -> str:
    """Declare the inputs of every text model; returns the mask as attention takes it.

    `apply_mask` says whether attention looks at `attention_mask` at all. False is for one
    text alone, without padding: attention then takes ORT's flash path, whose memory does
    not grow with T². It defaults to true, so that other tools can run the graph as usual.
    """
    graph.input(INPUT_IDS, TensorProto.INT64, ("B", "T"))
    graph.input(ATTENTION_MASK, TensorProto.INT64, ("B", "T"))
    graph.input(APPLY_MASK, TensorProto.BOOL, ())
    graph.constant(APPLY_MASK, np.array(True))  # noqa: FBT003 - the input's default value
    return graph.op("Cast", ATTENTION_MASK, to=TensorProto.INT32)


def embed_tokens(
    graph: GraphBuilder, weights: Weights, table: tuple[int, int], type_vocab_size: int
) -> str:
    """Rows of the word table, token type 0 folded in; `table` is `(vocab_size, hidden_size)`."""
    token_type = _token_type(weights, (type_vocab_size, table[1]))
    rows = (piece + token_type for piece in weights.read_rows("word_embeddings", table))
    return graph.op("Gather", graph.tensor("word_embeddings", table, rows), INPUT_IDS)


def linear(
    graph: GraphBuilder,
    weights: Weights,
    x: str,
    name: str,
    size: tuple[int, int],
    *,
    bias: bool,
) -> str:
    """`x @ weight.T (+ bias)`; `size` is the checkpoint's `(out, in)`."""
    out, into = size
    kernel = weights.read(f"{name}.weight", size).T
    y = graph.op("MatMul", x, graph.tensor(f"{name}.weight", (into, out), [kernel]))
    return graph.op("Add", y, add_bias(graph, weights, name, out)) if bias else y


def add_bias(graph: GraphBuilder, weights: Weights, name: str, size: int) -> str:
    """The bias vector of a linear layer, as an initializer."""
    return graph.constant(f"{name}.bias", weights.read(f"{name}.bias", (size,)))


def layer_norm(
    graph: GraphBuilder, weights: Weights, x: str, name: str, *, size: int, eps: float
) -> str:
    """Affine layer norm over the last axis."""
    scale = graph.constant(f"{name}.weight", weights.read(f"{name}.weight", (size,)))
    shift = graph.constant(f"{name}.bias", weights.read(f"{name}.bias", (size,)))
    return graph.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)


def attention(graph: GraphBuilder, q: str, k: str, v: str, mask: str, *, num_heads: int) -> str:
    """Bidirectional attention on `(B, T, H)`, padding masked if `apply_mask`."""
    op = "MultiHeadAttention"
    return graph.choose(APPLY_MASK, (op, q, k, v, "", mask), (op, q, k, v), num_heads=num_heads)


def gelu(graph: GraphBuilder, x: str, bias: str | None = None) -> str:
    """Exact GELU, `x/2 (1 + erf(x/√2))`, of `x (+ bias)`; tanh-GELU differs by 5e-4."""
    if bias is None:
        return graph.op("Gelu", x, domain=CONTRIB)
    return graph.op("BiasGelu", x, bias, domain=CONTRIB)


def silu(graph: GraphBuilder, x: str) -> str:
    """`x * sigmoid(x)`."""
    return graph.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)


# --- the same in numpy


def np_embed_tokens(
    weights: Weights,
    table: tuple[int, int],
    type_vocab_size: int,
    input_ids: NDArray[np.int64],
) -> FloatArray:
    """Rows of the word table plus token type 0; `(T, H)`."""
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


def np_attention(q: FloatArray, k: FloatArray, v: FloatArray, num_heads: int) -> FloatArray:
    """Bidirectional attention of one text; `(T, H)` each."""
    n_tokens, hidden = q.shape
    heads = [x.reshape(n_tokens, num_heads, -1).swapaxes(0, 1) for x in (q, k, v)]  # (A, T, D)
    scores = heads[0] @ heads[1].swapaxes(1, 2) / np.float32(math.sqrt(hidden // num_heads))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return (scores @ heads[2]).swapaxes(0, 1).reshape(n_tokens, hidden)


def np_gelu(x: FloatArray) -> FloatArray:
    """Exact GELU."""
    erf = cast("NDArray[Any]", np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2))))
    return (x * (1 + erf) / 2).astype(np.float32)


def np_silu(x: FloatArray) -> FloatArray:
    """`x * sigmoid(x)`."""
    return x / (np.float32(1) + np.exp(-x))
