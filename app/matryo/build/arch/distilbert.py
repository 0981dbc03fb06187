"""`model_type = "distilbert"`: BERT's encoder without token types, usually with half the layers.

The table of positions is read from the checkpoint, also if config.json says
`sinusoidal_pos_embds = true`: that key says how the table was made.

Source: Sanh et al. 2019, DistilBERT, arXiv:1910.01108.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from matryo.build.arch import _layers as layers
from matryo.build.arch import _post_norm as post_norm
from matryo.build.arch._counts import Blocks, Count
from matryo.build.arch._keys import Key, n_rows
from matryo.build.arch._layers import Layers
from matryo.build.arch._positions import emit_positions, np_positions
from matryo.build.arch._post_norm import (
    Encoder,
    Names,
    check_heads,
    emit_encoder,
    gguf_spellings,
    hub_spellings,
    ignored,
    np_encoder,
)
from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision

HUB_KEYS: Mapping[str, Key] = {
    "dim": Key(("dim", "hidden_size"), 768),
    "n_layers": Key(("n_layers", "num_hidden_layers"), 6),
    "n_heads": Key(("n_heads", "num_attention_heads"), 12),
    "hidden_dim": Key(("hidden_dim",), 3072),
    "activation": Key(("activation",), "gelu"),
    "max_position_embeddings": Key(("max_position_embeddings",), 512),
    "vocab_size": Key(("vocab_size",), 30522),
}

HUB_FIXED: Mapping[str, tuple[object, ...]] = {}

GGUF_ARCHITECTURES = ("bert",)
"""llama.cpp says `bert` for BERT, too. A DistilBERT's file has no `token_types.weight`."""

GGUF_KEYS: Mapping[str, Key] = {
    "dim": Key(("{arch}.embedding_length",)),
    "n_layers": Key(("{arch}.block_count",)),
    "n_heads": Key(("{arch}.attention.head_count",)),
    "hidden_dim": Key(("{arch}.feed_forward_length",)),
    "max_position_embeddings": Key(("{arch}.context_length",)),
}


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show, and those of every such file."""
    return {"activation": "gelu", "vocab_size": n_rows(checkpoint, "token_embd.weight")}


_EPS = 1e-12
_HUB = Names(
    {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "position_embeddings": "embeddings.position_embeddings.weight",
    },
    "embeddings.LayerNorm",
    "transformer.layer.{}.",
    {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "fc1": "ffn.lin1",
        "fc2": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
)
_GGUF = replace(post_norm.GGUF, tables={name: post_norm.GGUF.tables[name] for name in _HUB.tables})
_HEADS = (r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier)\..*",)


class Config(BaseModel):
    """The keys of Hugging Face's `DistilBertConfig` that shape the graph.

    Attributes:
        dim: width of a hidden state, `H`.
        hidden_dim: width inside of the MLP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dim: Count
    n_layers: Blocks
    n_heads: Count
    hidden_dim: Count
    activation: Literal["gelu"]
    max_position_embeddings: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_heads(("dim", self.dim), ("n_heads", self.n_heads))
        return self

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state, as other configs call it."""
        return self.dim

    @property
    def encoder(self) -> Encoder:
        """The counts and widths of the encoder."""
        return Encoder(self.n_layers, self.n_heads, self.dim, self.hidden_dim, _EPS)


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names."""
    n_layers = config.n_layers
    tables = (*hub_spellings(_HUB, n_layers, "distilbert."), *gguf_spellings(_GGUF, n_layers))
    return Weights(checkpoint, tables, ignored=(*ignored("distilbert."), *_HEADS))


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.dim, precision)
    words = net.embed_tokens((config.vocab_size, config.dim), type_vocab_size=0)
    positions = emit_positions(net, (config.max_position_embeddings, config.dim))
    emit_encoder(net, graph.op("Add", words, positions), config.encoder)


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    table = (config.vocab_size, config.dim)
    x = layers.np_embed_tokens(weights, table, 0, np.concatenate(texts))
    x = x + np_positions(weights, (config.max_position_embeddings, config.dim), texts)
    return np_encoder(weights, x, config.encoder, [len(ids) for ids in texts])
