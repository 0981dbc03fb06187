"""The forward of `modernbert` in numpy. A build checks the graph against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._gated_mlp import np_gated_mlp
from matryo.build.arch._local_attention import np_local_attention
from matryo.build.arch._rotary import np_rotate, rotary_tables
from matryo.build.arch.modernbert.config import Config
from matryo.build.checkpoint import FloatArray, Weights


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner = config.hidden_size, config.intermediate_size
    activate = layers.np_gelu if config.hidden_activation == "gelu" else layers.np_silu
    positions = np.concatenate([np.arange(length) for length in lengths])

    def norm(x: FloatArray, name: str) -> FloatArray:
        return layers.np_layer_norm(weights, x, name, config.norm_eps, bias=config.norm_bias)

    def attend(i: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        local, heads = config.is_local(i), config.num_attention_heads
        theta = config.rope_theta(local=local)
        cos, sin = rotary_tables(config.head_size, theta, max(lengths))
        q, k = (np_rotate(x, cos[positions], sin[positions], heads) for x in (q, k))
        if local:
            return np_local_attention(q, k, v, heads, lengths, config.window)
        return layers.np_attention(q, k, v, heads, lengths)

    table = (config.vocab_size, hidden)
    x = norm(layers.np_embed_tokens(weights, table, 0, np.concatenate(texts)), "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, square, bias = f"layer.{i}.", (hidden, hidden), config.attention_bias
        y = norm(x, at + "attention_norm") if i else x
        q, k, v = (
            layers.np_linear(weights, y, at + name, square, bias=bias)
            for name in ("query", "key", "value")
        )
        y = attend(i, q, k, v)
        x = x + layers.np_linear(weights, y, at + "attention_output", square, bias=bias)
        y, bias = norm(x, at + "mlp_norm"), config.mlp_bias
        x = x + np_gated_mlp(weights, y, at, (inner, hidden), activate, bias=bias, down_bias=bias)
    return np.split(norm(x, "final_norm"), np.cumsum(lengths)[:-1])
