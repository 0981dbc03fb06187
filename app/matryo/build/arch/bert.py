"""`model_type = "bert"`: the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805).

The encoder has learned positions, layer norms after each block, exact GELU, and a bias in every
linear layer. A model that embeds single texts gives type 0 to every token, so the emitted word
table already contains the embedding of type 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch import _layers as layers
from matryo.build.arch._counts import Blocks, Count
from matryo.build.arch._keys import Key, n_rows
from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import Checkpoint, FloatArray, Part, Spelling, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE


class Config(BaseModel):
    """The keys of Hugging Face's `BertConfig` that shape the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["gelu"]
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)]
    max_position_embeddings: Count
    type_vocab_size: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            msg = (
                f"hidden_size is {self.hidden_size}, but must be a multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
            raise ValueError(msg)
        return self


HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size",), 768),
    "num_hidden_layers": Key(("num_hidden_layers",), 12),
    "num_attention_heads": Key(("num_attention_heads",), 12),
    "intermediate_size": Key(("intermediate_size",), 3072),
    "hidden_act": Key(("hidden_act",), "gelu"),
    "layer_norm_eps": Key(("layer_norm_eps",), 1e-12),
    "max_position_embeddings": Key(("max_position_embeddings",), 512),
    "type_vocab_size": Key(("type_vocab_size",), 2),
    "vocab_size": Key(("vocab_size",), 30522),
}
"""Where `config.json` has each key, and the defaults of transformers' `BertConfig`."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Keys of `config.json` that change the result, and the values that the graph computes."""

GGUF_ARCHITECTURES = ("bert",)
"""What llama.cpp's conversion calls the architecture."""

GGUF_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("{arch}.embedding_length",)),
    "num_hidden_layers": Key(("{arch}.block_count",)),
    "num_attention_heads": Key(("{arch}.attention.head_count",)),
    "intermediate_size": Key(("{arch}.feed_forward_length",)),
    "layer_norm_eps": Key(("{arch}.attention.layer_norm_epsilon",)),
    "max_position_embeddings": Key(("{arch}.context_length",)),
}
"""Where the metadata of a GGUF file have each key."""


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show, and those of every such file."""
    return {
        "hidden_act": "gelu",
        "type_vocab_size": n_rows(checkpoint, "token_types.weight"),
        "vocab_size": n_rows(checkpoint, "token_embd.weight"),
    }


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """The tensor names that a checkpoint may use.

    They are those of transformers' `BertModel`, those of a BERT with a task head, whose names
    begin with `bert.`, and those of llama.cpp with separate or with joined q, k and v.
    """
    return (
        _names(config, "", _HUB),
        _names(config, "bert.", _HUB),
        _names(config, "", _GGUF),
        _names(config, "", _GGUF, thirds="attn_qkv"),
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """The tensor names of one file format.

    Attributes:
        embeddings: name of each embedding table, by our name.
        embedding_norm: name of the norm after the embeddings.
        layer: prefix of a layer's modules; `{}` is the layer's index.
        modules: name of each module of a layer, by our name.
    """

    embeddings: Mapping[str, str]
    embedding_norm: str
    layer: str
    modules: Mapping[str, str]


_HUB = _Names(
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
_GGUF = _Names(
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


def _names(config: Config, prefix: str, names: _Names, thirds: str | None = None) -> Spelling:
    """Where one file format has each of our tensors.

    Args:
        config: the model's config.
        prefix: text before every name.
        names: the names of the file format.
        thirds: the module that joins q, k and v; None if they are separate.
    """
    table: dict[str, str | Part] = {
        ours: prefix + theirs for ours, theirs in names.embeddings.items()
    }
    for suffix in ("weight", "bias"):
        table[f"embedding_norm.{suffix}"] = f"{prefix}{names.embedding_norm}.{suffix}"
        for i in range(config.num_hidden_layers):
            layer = prefix + names.layer.format(i)
            for ours, theirs in names.modules.items():
                table[f"layer.{i}.{ours}.{suffix}"] = f"{layer}{theirs}.{suffix}"
            for index, ours in enumerate(("query", "key", "value") if thirds else ()):
                table[f"layer.{i}.{ours}.{suffix}"] = Part(f"{layer}{thirds}.{suffix}", index, 3)
    return table


_IGNORED = (r"(bert\.)?pooler\..*", r"(bert\.)?embeddings\.position_ids", r"cls\..*")


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names; `_spellings` has the names of the file."""
    return Weights(checkpoint, _spellings(config), ignored=_IGNORED)


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, inner = config.hidden_size, config.intermediate_size

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, width=hidden, eps=config.layer_norm_eps)

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
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


def _embed(net: Layers, config: Config) -> str:
    """The sum of word, token type and position embeddings; `(N, H)`."""
    graph = net.graph
    words = net.embed_tokens((config.vocab_size, config.hidden_size), config.type_vocab_size)
    shape = (config.max_position_embeddings, config.hidden_size)
    table = graph.constant("position_embeddings", net.weights.read("position_embeddings", shape))
    n_tokens = graph.op("Shape", INPUT_IDS, start=1, end=2)
    positions = graph.op("Mod", net.token_indices, n_tokens)
    return graph.op("Add", words, graph.op("Gather", table, positions))


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner, eps = (
        config.hidden_size,
        config.intermediate_size,
        config.layer_norm_eps,
    )

    def linear(x: FloatArray, name: str, shape: tuple[int, int]) -> FloatArray:
        return layers.np_linear(weights, x, name, shape, bias=True)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    position_table = weights.read("position_embeddings", (config.max_position_embeddings, hidden))
    positions = np.concatenate([np.arange(length) for length in lengths])
    x = layers.np_layer_norm(weights, x + position_table[positions], "embedding_norm", eps)
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
