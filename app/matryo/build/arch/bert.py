"""`model_type = "bert"`: the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805).

The encoder has learned positions, layer norms after each block, exact GELU, and a bias in every
linear layer. A model that embeds single texts gives type 0 to every token, so the emitted word
table already contains the embedding of type 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._counts import Count
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
