"""`model_type = "mpnet"`: BERT's encoder with a bias on the attention scores, by distance.

Positions begin after the padding token's id, as in RoBERTa, and there are no token types. Distances
between two tokens fall into buckets. A table has a bias for each bucket and head, and all layers
use the same table.

Sources: Song et al. 2020, MPNet, arXiv:2004.09297; Raffel et al. 2019, T5, arXiv:1910.10683, for
the buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from matryo.build.arch import _layers as layers
from matryo.build.arch._keys import Key
from matryo.build.arch._layers import Layers
from matryo.build.arch._positions import emit_counted_positions, np_counted_positions
from matryo.build.arch._post_norm import (
    EncoderConfig,
    Names,
    emit_encoder,
    hub_spellings,
    ignored,
    np_encoder,
)
from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS

HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size",), 768),
    "num_hidden_layers": Key(("num_hidden_layers",), 12),
    "num_attention_heads": Key(("num_attention_heads",), 12),
    "intermediate_size": Key(("intermediate_size",), 3072),
    "hidden_act": Key(("hidden_act",), "gelu"),
    "layer_norm_eps": Key(("layer_norm_eps",), 1e-12),
    "max_position_embeddings": Key(("max_position_embeddings",), 512),
    "vocab_size": Key(("vocab_size",), 30527),
}

# transformers takes 1 for the padding token and 32 buckets, whatever config.json says.
_PAD, _BUCKETS = 1, 32

HUB_FIXED: Mapping[str, tuple[object, ...]] = {"relative_attention_num_buckets": (_BUCKETS,)}

GGUF_ARCHITECTURES: tuple[str, ...] = ()
"""llama.cpp does not know the model."""

GGUF_KEYS: Mapping[str, Key] = {}


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:  # noqa: ARG001 - the protocol's
    """Nothing: there is no such file."""
    return {}


_MAX_DISTANCE = 128
"""All greater distances in one direction share a bucket."""

_HUB = Names(
    {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "position_embeddings": "embeddings.position_embeddings.weight",
        "attention_bias": "encoder.relative_attention_bias.weight",
    },
    "embeddings.LayerNorm",
    "encoder.layer.{}.",
    {
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "mlp_norm": "output.LayerNorm",
    },
)


class Config(EncoderConfig):
    """The keys of Hugging Face's `MPNetConfig` that shape the graph.

    Attributes:
        max_position_embeddings: rows of the position table, of which the first two are no token's
            position. The bound keeps the scores of a long text, `(A, T, T)`, in memory: ORT has no
            flash attention with a bias.
    """

    max_position_embeddings: Annotated[int, Field(gt=_PAD + 1, le=2050)]

    @property
    def max_tokens(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings - _PAD - 1


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names."""
    tables = hub_spellings(_HUB, config.num_hidden_layers, "mpnet.")
    return Weights(checkpoint, tables, ignored=ignored("mpnet."))


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    hidden = config.hidden_size
    net = Layers(graph, weights, hidden, precision)
    words = net.embed_tokens((config.vocab_size, hidden), type_vocab_size=0)
    positions = emit_counted_positions(net, (config.max_position_embeddings, hidden), _PAD)
    x = graph.op("Add", words, positions)
    bias = _emit_attention_bias(graph, _bias_by_distance(weights, config.num_attention_heads))
    emit_encoder(net, x, config.encoder, attention_bias=bias)


def _emit_attention_bias(graph: GraphBuilder, by_distance: FloatArray) -> str:
    """The bias of each score, `(1, A, T, T)`, from that of each distance; `_bias_by_distance`."""

    def constant(name: str, value: int | list[int]) -> str:
        return graph.constant(f"distance_{name}", np.array(value, np.int64))

    n_tokens = graph.op("Squeeze", graph.op("Shape", INPUT_IDS, start=1, end=2))
    keys = graph.op("Range", constant("first", 0), n_tokens, constant("step", 1))
    queries = graph.op("Unsqueeze", keys, constant("axis", [1]))
    distance = graph.op("Sub", keys, queries)  # (T, T)
    most = constant("most", _MAX_DISTANCE)
    distance = graph.op("Min", distance, most)
    distance = graph.op("Max", distance, constant("least", -_MAX_DISTANCE))
    table = graph.constant("attention_bias", by_distance[None])
    return graph.op("Gather", table, graph.op("Add", distance, most), axis=2)


def _bias_by_distance(weights: Weights, num_heads: int) -> FloatArray:
    """The bias of each head and distance from -128 to 128, `(A, 257)`.

    A distance is the key's position minus the query's.
    """
    table = weights.read("attention_bias", (_BUCKETS, num_heads))
    distances = range(-_MAX_DISTANCE, _MAX_DISTANCE + 1)
    return np.ascontiguousarray(table[[_bucket(distance) for distance in distances]].T)


def _bucket(distance: int) -> int:
    """The bucket of a distance: half of all buckets for keys to the right of the query.

    Half of the buckets of a direction are for one distance each. The others grow: two of them cover
    a doubling of the distance, up to 128.
    """
    half, far = _BUCKETS // 2, abs(distance)
    exact = half // 2
    if far >= exact:
        doublings_by_two = (far * far // exact**2).bit_length() - 1  # log2 of the square
        far = min(exact + doublings_by_two, half - 1)
    return far + (half if distance > 0 else 0)


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    hidden, lengths = config.hidden_size, [len(ids) for ids in texts]
    x = layers.np_embed_tokens(weights, (config.vocab_size, hidden), 0, np.concatenate(texts))
    shape = (config.max_position_embeddings, hidden)
    x = x + np_counted_positions(weights, shape, _PAD, texts)
    positions = np.arange(max(lengths))
    distances = np.clip(positions - positions[:, None], -_MAX_DISTANCE, _MAX_DISTANCE)
    by_distance = _bias_by_distance(weights, config.num_attention_heads)
    bias = by_distance[:, distances + _MAX_DISTANCE]
    return np_encoder(weights, x, config.encoder, lengths, attention_bias=bias)
