"""`model_type = "bert"`: the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805).

The encoder has learned positions, layer norms after each block, exact GELU, and a bias in every
linear layer. A model that embeds single texts gives type 0 to every token, so the emitted word
table already contains the embedding of type 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._counts import Count
from matryo.build.arch._keys import Key, n_rows
from matryo.build.arch._layers import Layers
from matryo.build.arch._positions import emit_positions, np_positions
from matryo.build.arch._post_norm import (
    GGUF,
    HUB,
    EncoderConfig,
    emit_encoder,
    gguf_spellings,
    hub_spellings,
    ignored,
    np_encoder,
)
from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision


class Config(EncoderConfig):
    """The keys of Hugging Face's `BertConfig` that shape the graph."""

    type_vocab_size: Count


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


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names."""
    n_layers = config.num_hidden_layers
    tables = (*hub_spellings(HUB, n_layers, "bert."), *gguf_spellings(GGUF, n_layers))
    return Weights(checkpoint, tables, ignored=ignored("bert."))


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    hidden = config.hidden_size
    net = Layers(graph, weights, hidden, precision)
    words = net.embed_tokens((config.vocab_size, hidden), config.type_vocab_size)
    positions = emit_positions(net, (config.max_position_embeddings, hidden))
    emit_encoder(net, graph.op("Add", words, positions), config.encoder)


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    hidden = config.hidden_size
    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    x = x + np_positions(weights, (config.max_position_embeddings, hidden), texts)
    return np_encoder(weights, x, config.encoder, [len(ids) for ids in texts])
