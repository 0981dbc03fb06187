"""The forward of `new` in numpy. A build checks the graph against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._gated_mlp import np_gated_mlp
from matryo.build.arch._rotary import np_rotate
from matryo.build.arch.new.config import Config
from matryo.build.checkpoint import FloatArray, Weights


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    positions = np.concatenate([np.arange(length) for length in lengths])
    cos, sin = (table[positions] for table in config.rotary_tables(max(lengths)))

    def norm(x: FloatArray, name: str) -> FloatArray:
        return layers.np_layer_norm(weights, x, name, config.layer_norm_eps)

    def linear(x: FloatArray, name: str) -> FloatArray:
        return layers.np_linear(weights, x, name, (hidden, hidden), bias=True)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    x = norm(x, "embedding_norm")
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        q, k, v = (linear(x, at + name) for name in ("query", "key", "value"))
        q, k = (np_rotate(part, cos, sin, heads) for part in (q, k))
        y = layers.np_attention(q, k, v, heads, lengths)
        x = norm(x + linear(y, at + "attention_output"), at + "attention_norm")
        y = np_gated_mlp(
            weights, x, at, (inner, hidden), layers.np_gelu, bias=False, down_bias=True
        )
        x = norm(x + y, at + "mlp_norm")
    return np.split(x, np.cumsum(lengths)[:-1])
