"""The encoder of BERT that several architectures share: layer norms after each block, exact GELU.

Every linear layer has a bias. The architectures differ in what goes in before the first layer norm,
in the tensor names, and in a bias on the attention scores.

Source: Devlin et al. 2018, BERT, arXiv:1810.04805.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch import _layers as layers
from matryo.build.arch._counts import Blocks, Count
from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray, Part, Spelling, Weights
from matryo.engine.onnx.interface import LAST_HIDDEN_STATE


@dataclass(frozen=True, slots=True)
class Encoder:
    """The counts and widths of an encoder.

    Attributes:
        n_layers: number of layers.
        n_heads: number of attention heads.
        hidden: width of a hidden state, `H`.
        inner: width inside of the MLP.
        eps: epsilon of every layer norm.
    """

    n_layers: int
    n_heads: int
    hidden: int
    inner: int
    eps: float


class EncoderConfig(BaseModel):
    """The keys of Hugging Face's `BertConfig` that the configs of several architectures share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["gelu"]
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)]
    max_position_embeddings: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_heads(
            ("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads)
        )
        return self

    @property
    def encoder(self) -> Encoder:
        """The counts and widths of the encoder."""
        return Encoder(
            n_layers=self.num_hidden_layers,
            n_heads=self.num_attention_heads,
            hidden=self.hidden_size,
            inner=self.intermediate_size,
            eps=self.layer_norm_eps,
        )


def check_heads(hidden: tuple[str, int], heads: tuple[str, int]) -> None:
    """Raise ValueError unless the heads share the hidden state equally.

    Args:
        hidden: name and value of the config's hidden width.
        heads: name and value of the config's number of heads.
    """
    if hidden[1] % heads[1]:
        msg = f"{hidden[0]} is {hidden[1]}, but must be a multiple of {heads[0]} = {heads[1]}"
        raise ValueError(msg)


# --- tensor names


@dataclass(frozen=True, slots=True)
class Names:
    """The tensor names of one file format.

    Attributes:
        tables: name of each table, by our name.
        embedding_norm: name of the norm after the embeddings.
        layer: prefix of a layer's modules; `{}` is the layer's index.
        modules: name of each module of a layer, by our name.
    """

    tables: Mapping[str, str]
    embedding_norm: str
    layer: str
    modules: Mapping[str, str]


HUB = Names(
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
"""The names of transformers' `BertModel` and `RobertaModel`."""

GGUF = Names(
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
"""The names of llama.cpp."""


def hub_spellings(names: Names, n_layers: int, prefix: str) -> tuple[Spelling, ...]:
    """The tensor names of transformers' base model, and of a model with a task head.

    Names of a model with a head begin with `prefix`. The weights of a layer norm are `weight` and
    `bias`, or `gamma` and `beta` in a checkpoint that was once converted from TensorFlow.
    """
    return tuple(
        _spelling(names, n_layers, prefix=start, norm_suffixes=suffixes)
        for suffixes in (("weight", "bias"), ("gamma", "beta"))
        for start in ("", prefix)
    )


def gguf_spellings(names: Names, n_layers: int) -> tuple[Spelling, ...]:
    """The tensor names of llama.cpp, with separate and with joined q, k and v."""
    return _spelling(names, n_layers), _spelling(names, n_layers, thirds="attn_qkv")


def _spelling(
    names: Names,
    n_layers: int,
    *,
    prefix: str = "",
    norm_suffixes: tuple[str, str] = ("weight", "bias"),
    thirds: str = "",
) -> Spelling:
    """Where one file format has each of our tensors.

    Args:
        names: the names of the file format.
        n_layers: number of layers.
        prefix: text before every name.
        norm_suffixes: names of the scale and of the shift of a layer norm.
        thirds: the module that joins q, k and v; empty if they are separate.
    """
    table: dict[str, str | Part] = {ours: prefix + theirs for ours, theirs in names.tables.items()}
    for suffix, of_norm in zip(("weight", "bias"), norm_suffixes, strict=True):
        table[f"embedding_norm.{suffix}"] = f"{prefix}{names.embedding_norm}.{of_norm}"
        for i in range(n_layers):
            layer = prefix + names.layer.format(i)
            for ours, theirs in names.modules.items():
                end = of_norm if ours.endswith("norm") else suffix
                table[f"layer.{i}.{ours}.{suffix}"] = f"{layer}{theirs}.{end}"
            for index, ours in enumerate(("query", "key", "value") if thirds else ()):
                table[f"layer.{i}.{ours}.{suffix}"] = Part(f"{layer}{thirds}.{suffix}", index, 3)
    return table


def ignored(prefix: str) -> tuple[str, ...]:
    """Patterns of the tensors that an embedding model does not use: the pooler and task heads."""
    base = f"({re.escape(prefix)})?"
    heads = r"(cls|lm_head|classifier|qa_outputs)\..*"
    return rf"{base}pooler\..*", rf"{base}embeddings\.position_ids", heads


# --- the graph


def emit_encoder(net: Layers, x: str, size: Encoder, *, attention_bias: str = "") -> None:
    """Write the nodes from the sum of the embeddings to `last_hidden_state`.

    Args:
        net: writes the layers.
        x: the sum of the embeddings, `(N, H)`.
        size: the counts and widths of the encoder.
        attention_bias: see `Layers.attention`.
    """
    graph, hidden, inner = net.graph, size.hidden, size.inner

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, width=hidden, eps=size.eps)

    x = norm(x, "embedding_norm")
    for i in range(size.n_layers):
        at = f"layer.{i}."
        y = net.self_attention(
            x, at, num_heads=size.n_heads, hidden=hidden, bias=True, score_bias=attention_bias
        )
        y = net.linear(y, at + "attention_output", (hidden, hidden), bias=True, residual=x)
        x = norm(y, at + "attention_norm")
        wide = net.products.operand(x, norm=at + "attention_norm")
        y = net.linear(wide, at + "fc1", (inner, hidden), bias=True, activation="gelu")
        positive = net.products.operand(y, one_sided=True)
        y = net.linear(positive, at + "fc2", (hidden, inner), bias=True, residual=x)
        x = norm(y, at + "mlp_norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


# --- the numpy forward


def np_encoder(
    weights: Weights,
    x: FloatArray,
    size: Encoder,
    lengths: Sequence[int],
    *,
    attention_bias: FloatArray | None = None,
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32.

    Args:
        weights: the weights, under our names.
        x: the sum of the embeddings, `(N, H)`, one text after the other.
        size: the counts and widths of the encoder.
        lengths: number of tokens of each text.
        attention_bias: see `np_attention`.
    """
    hidden, inner = size.hidden, size.inner

    def linear(x: FloatArray, name: str, shape: tuple[int, int]) -> FloatArray:
        return layers.np_linear(weights, x, name, shape, bias=True)

    def norm(x: FloatArray, name: str) -> FloatArray:
        return layers.np_layer_norm(weights, x, name, size.eps)

    x = norm(x, "embedding_norm")
    for i in range(size.n_layers):
        at = f"layer.{i}."
        q, k, v = (linear(x, at + name, (hidden, hidden)) for name in ("query", "key", "value"))
        y = layers.np_attention(q, k, v, size.n_heads, lengths, bias=attention_bias)
        y = linear(y, at + "attention_output", (hidden, hidden))
        x = norm(x + y, at + "attention_norm")
        y = layers.np_gelu(linear(x, at + "fc1", (inner, hidden)))
        x = norm(x + linear(y, at + "fc2", (hidden, inner)), at + "mlp_norm")
    return np.split(x, np.cumsum(lengths)[:-1])
