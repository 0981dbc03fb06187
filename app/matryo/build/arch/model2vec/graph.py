"""Writes `model2vec` as an ONNX graph, and computes the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch._layers import Layers
from matryo.build.arch.model2vec.config import Config
from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    table = (config.vocab_size, config.hidden_size)
    rows = weights.read_rows("word_embeddings", table)
    x = net.products.words(table, rows, net.remove_padding(INPUT_IDS))
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", config.hidden_size))


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32: the rows of its tokens."""
    table = (config.vocab_size, config.hidden_size)
    return [weights.lookup("word_embeddings", table, ids.tolist()) for ids in texts]
