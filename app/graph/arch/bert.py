"""`model_type = "bert"`: the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805).

Learned positions, post-norm, exact GELU, biases everywhere. Token types are all 0, as in
every embedder of single texts, so that row is folded into the word table.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.graph.arch import _layers as layers
from app.graph.checkpoint import Checkpoint, FloatArray, Spelling, Weights
from app.graph.emit import GraphBuilder

_Size = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """The keys of Hugging Face's `BertConfig` that shape the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    intermediate_size: _Size
    hidden_act: Literal["gelu"]
    layer_norm_eps: Annotated[float, Field(gt=0)]
    max_position_embeddings: _Size
    type_vocab_size: _Size
    vocab_size: _Size


def _spelling(prefix: str) -> Spelling:
    layer = f"{prefix}encoder.layer.{{i}}"
    modules = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    return {
        "word_embeddings": f"{prefix}embeddings.word_embeddings.weight",
        "position_embeddings": f"{prefix}embeddings.position_embeddings.weight",
        "token_type_embeddings": f"{prefix}embeddings.token_type_embeddings.weight",
        "embedding_norm.weight": f"{prefix}embeddings.LayerNorm.weight",
        "embedding_norm.bias": f"{prefix}embeddings.LayerNorm.bias",
        **{
            f"layer.{{i}}.{ours}.{kind}": f"{layer}.{theirs}.{kind}"
            for ours, theirs in modules.items()
            for kind in ("weight", "bias")
        },
    }


# BertModel's own names, and those of a model with a head on it.
SPELLINGS = (_spelling(""), _spelling("bert."))
IGNORED = (r"(bert\.)?pooler\..*", r"(bert\.)?embeddings\.position_ids", r"cls\..*")


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """`checkpoint` under the names of `_spelling`."""
    return Weights(checkpoint, SPELLINGS, ignored=IGNORED, num_layers=config.num_hidden_layers)


def emit(graph: GraphBuilder, weights: Weights, config: Config) -> None:
    """Write the graph."""
    hidden, inner = config.hidden_size, config.intermediate_size
    mask = layers.declare_inputs(graph)

    def norm(x: str, name: str) -> str:
        eps = config.layer_norm_eps
        return layers.layer_norm(graph, weights, x, name, size=hidden, eps=eps)

    def linear(x: str, name: str, size: tuple[int, int], *, bias: bool = True) -> str:
        return layers.linear(graph, weights, x, name, size, bias=bias)

    x = norm(_embed(graph, weights, config), "embedding_norm")
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        q, k, v = (linear(x, at + name, (hidden, hidden)) for name in ("query", "key", "value"))
        y = layers.attention(graph, q, k, v, mask, num_heads=config.num_attention_heads)
        y = linear(y, at + "attention_output", (hidden, hidden))
        x = norm(graph.op("Add", x, y), at + "attention_norm")
        y = linear(x, at + "fc1", (inner, hidden), bias=False)
        y = layers.gelu(graph, y, layers.add_bias(graph, weights, at + "fc1", inner))
        y = linear(y, at + "fc2", (hidden, inner))
        x = norm(graph.op("Add", x, y), at + "mlp_norm")
    graph.output(layers.LAST_HIDDEN_STATE, x, ("B", "T", hidden))


def _embed(graph: GraphBuilder, weights: Weights, config: Config) -> str:
    words = layers.embed_tokens(
        graph, weights, (config.vocab_size, config.hidden_size), config.type_vocab_size
    )
    shape = (config.max_position_embeddings, config.hidden_size)
    table = graph.constant("position_embeddings", weights.read("position_embeddings", shape))
    n_tokens = graph.op("Shape", layers.INPUT_IDS, start=1, end=2)
    first = graph.constant("first_position", np.zeros(1, np.int64))
    return graph.op("Add", words, graph.op("Slice", table, first, n_tokens))


def forward(weights: Weights, config: Config, input_ids: NDArray[np.int64]) -> FloatArray:
    """Hidden states `(T, H)` of one text, in plain numpy."""
    hidden, inner, eps = (
        config.hidden_size,
        config.intermediate_size,
        config.layer_norm_eps,
    )

    def linear(x: FloatArray, name: str, size: tuple[int, int]) -> FloatArray:
        return layers.np_linear(weights, x, name, size, bias=True)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, input_ids)
    positions = weights.read("position_embeddings", (config.max_position_embeddings, hidden))
    x = layers.np_layer_norm(weights, x + positions[: len(x)], "embedding_norm", eps)
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        q, k, v = (linear(x, at + name, (hidden, hidden)) for name in ("query", "key", "value"))
        y = layers.np_attention(q, k, v, config.num_attention_heads)
        y = linear(y, at + "attention_output", (hidden, hidden))
        x = layers.np_layer_norm(weights, x + y, at + "attention_norm", eps)
        y = layers.np_gelu(linear(x, at + "fc1", (inner, hidden)))
        y = linear(y, at + "fc2", (hidden, inner))
        x = layers.np_layer_norm(weights, x + y, at + "mlp_norm", eps)
    return x
