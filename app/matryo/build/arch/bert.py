"""`model_type = "bert"`: the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805).

Learned positions, post-norm, exact GELU, biases everywhere. Token types are all 0, as in
every embedder of single texts, so that row is folded into the word table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from matryo.build.arch import _layers as layers
from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import Checkpoint, FloatArray, Part, Spelling, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE

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


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """BertModel's own names, those of a model with a head on it, and llama.cpp's two."""
    return (
        _names(config, "", _HUB),
        _names(config, "bert.", _HUB),
        _names(config, "", _GGUF),
        _names(config, "", _GGUF, thirds="attn_qkv"),
    )


@dataclass(frozen=True, slots=True)
class _Words:
    """One family's word for everything; `modules` are below `layer`."""

    embeddings: Mapping[str, str]
    embedding_norm: str
    layer: str
    modules: Mapping[str, str]


_HUB = _Words(
    {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "position_embeddings": "embeddings.position_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
    },
    "embeddings.LayerNorm",
    "encoder.layer.{}.",
    {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "mlp_norm": "output.LayerNorm",
    },
)
_GGUF = _Words(
    {
        "word_embeddings": "token_embd.weight",
        "position_embeddings": "position_embd.weight",
        "token_type_embeddings": "token_types.weight",
    },
    "token_embd_norm",
    "blk.{}.",
    {
        "query": "attn_q",
        "key": "attn_k",
        "value": "attn_v",
        "attention_output": "attn_output",
        "attention_norm": "attn_output_norm",
        "fc1": "ffn_up",
        "fc2": "ffn_down",
        "mlp_norm": "layer_output_norm",
    },
)


def _names(config: Config, prefix: str, words: _Words, thirds: str | None = None) -> Spelling:
    """The table of one family; `thirds` is its module of q, k and v, if it joins them."""
    kinds = ("weight", "bias")
    table: dict[str, str | Part] = {
        ours: prefix + theirs for ours, theirs in words.embeddings.items()
    }
    for kind in kinds:
        table[f"embedding_norm.{kind}"] = f"{prefix}{words.embedding_norm}.{kind}"
        for i in range(config.num_hidden_layers):
            layer = prefix + words.layer.format(i)
            for ours, theirs in words.modules.items():
                table[f"layer.{i}.{ours}.{kind}"] = f"{layer}{theirs}.{kind}"
            for index, ours in enumerate(("query", "key", "value") if thirds else ()):
                table[f"layer.{i}.{ours}.{kind}"] = Part(f"{layer}{thirds}.{kind}", index, 3)
    return table


_IGNORED = (r"(bert\.)?pooler\..*", r"(bert\.)?embeddings\.position_ids", r"cls\..*")


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """`checkpoint` under the names of `_spellings`."""
    return Weights(checkpoint, _spellings(config), ignored=_IGNORED)


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the graph."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, inner = config.hidden_size, config.intermediate_size

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, size=hidden, eps=config.layer_norm_eps)

    x = norm(_embed(net, config), "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, square = f"layer.{i}.", (hidden, hidden)
        q, k, v = (
            net.linear(x, at + name, square, bias=True, fine=name == "value")
            for name in ("query", "key", "value")
        )
        y = net.attention(q, k, v, num_heads=config.num_attention_heads)
        y = net.linear(y, at + "attention_output", square, bias=True)
        x = norm(graph.op("Add", x, y), at + "attention_norm")
        wide = net.products.operand(x, norm=at + "attention_norm")
        y = net.linear(wide, at + "fc1", (inner, hidden), bias=False)
        y = net.gelu(y, net.vector(f"{at}fc1.bias", inner))
        positive = net.products.operand(y, one_sided=True)
        y = net.linear(positive, at + "fc2", (hidden, inner), bias=True)
        x = norm(graph.op("Add", x, y), at + "mlp_norm")
    graph.output(LAST_HIDDEN_STATE, net.unpack(x), ("B", "T", hidden))


def _embed(net: Layers, config: Config) -> str:
    graph = net.graph
    words = net.embed_tokens((config.vocab_size, config.hidden_size), config.type_vocab_size)
    shape = (config.max_position_embeddings, config.hidden_size)
    table = graph.constant("position_embeddings", net.weights.read("position_embeddings", shape))
    n_tokens = graph.op("Shape", INPUT_IDS, start=1, end=2)
    places = graph.op("Mod", net.places, n_tokens)
    return graph.op("Add", words, graph.op("Gather", table, places))


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states `(T, H)` of each text, in plain numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner, eps = (
        config.hidden_size,
        config.intermediate_size,
        config.layer_norm_eps,
    )

    def linear(x: FloatArray, name: str, size: tuple[int, int]) -> FloatArray:
        return layers.np_linear(weights, x, name, size, bias=True)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    positions = weights.read("position_embeddings", (config.max_position_embeddings, hidden))
    places = np.concatenate([np.arange(length) for length in lengths])
    x = layers.np_layer_norm(weights, x + positions[places], "embedding_norm", eps)
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        q, k, v = (linear(x, at + name, (hidden, hidden)) for name in ("query", "key", "value"))
        y = layers.np_attention(q, k, v, config.num_attention_heads, lengths)
        y = linear(y, at + "attention_output", (hidden, hidden))
        x = layers.np_layer_norm(weights, x + y, at + "attention_norm", eps)
        y = layers.np_gelu(linear(x, at + "fc1", (inner, hidden)))
        y = linear(y, at + "fc2", (hidden, inner))
        x = layers.np_layer_norm(weights, x + y, at + "mlp_norm", eps)
    return np.split(x, np.cumsum(lengths)[:-1])
