"""Learned positions that several architectures share: from 0 on, or from the padding token's id on.

BERT gives the first token of a text row 0 of the table. RoBERTa gives it row `pad_token_id + 1`.
The padding token itself has row `pad_token_id` wherever it stands in a text, and does not count.
The rows before are never used.

Source: fairseq, `make_positions`; transformers, `create_position_ids_from_input_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray, Weights
from matryo.engine.onnx.interface import INPUT_IDS

_TABLE = "position_embeddings"


def emit_positions(net: Layers, shape: tuple[int, int]) -> str:
    """The position embedding of each token, the first of a text at row 0; `(N, H)`.

    Args:
        net: writes the layers.
        shape: shape of the table by the config, `(positions, H)`.
    """
    graph = net.graph
    table = graph.constant(_TABLE, net.weights.read(_TABLE, shape))
    n_tokens = graph.op("Shape", INPUT_IDS, start=1, end=2)
    positions = graph.op("Mod", net.token_indices, n_tokens)
    return graph.op("Gather", table, positions)


def np_positions(
    weights: Weights, shape: tuple[int, int], texts: Sequence[NDArray[np.int64]]
) -> FloatArray:
    """The position embedding of each token of `texts`; see `emit_positions`."""
    rows = np.concatenate([np.arange(len(ids)) for ids in texts])
    return weights.read(_TABLE, shape)[rows]


def emit_counted_positions(net: Layers, shape: tuple[int, int], pad: int) -> str:
    """The position embedding of each token, the first of a text at row `pad + 1`; `(N, H)`.

    Args:
        net: writes the layers.
        shape: shape of the table by the config, `(positions, H)`.
        pad: id of the padding token.
    """
    graph = net.graph
    table = graph.constant(_TABLE, _counted_rows(net.weights, shape, pad))
    pad_id = graph.constant("pad_token_id", np.array(pad, np.int64))
    is_other = graph.op("Not", graph.op("Equal", INPUT_IDS, pad_id))
    is_other = graph.op("Cast", is_other, to=TensorProto.INT64)
    count = graph.op("CumSum", is_other, graph.constant("token_axis", np.array(1, np.int64)))
    rows = net.remove_padding(graph.op("Mul", count, is_other))
    return graph.op("Gather", table, rows)


def np_counted_positions(
    weights: Weights, shape: tuple[int, int], pad: int, texts: Sequence[NDArray[np.int64]]
) -> FloatArray:
    """The position embedding of each token of `texts`; see `emit_counted_positions`."""
    rows = np.concatenate([np.cumsum(ids != pad) * (ids != pad) for ids in texts])
    return _counted_rows(weights, shape, pad)[rows]


def _counted_rows(weights: Weights, shape: tuple[int, int], pad: int) -> FloatArray:
    """The row of the padding token and all rows after it; `(positions - pad, H)`.

    The tables of llama.cpp begin after the padding token's row. The row is then 0: it starts as 0,
    and no training changes it.
    """
    n_late = shape[0] - pad - 1
    if weights.shape(_TABLE) == (n_late, shape[1]):
        late = weights.read(_TABLE, (n_late, shape[1]))
        return np.concatenate([np.zeros_like(late[:1]), late])
    return weights.read(_TABLE, shape, slice(pad, None))
