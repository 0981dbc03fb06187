"""The forward of `qwen3` in numpy. A build checks the graph against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._causal_attention import np_causal_attention
from matryo.build.arch._rms_norm import np_rms_norm
from matryo.build.arch._rotary import np_rotate, rotary_tables
from matryo.build.arch.qwen3.config import Config
from matryo.build.checkpoint import FloatArray, Weights


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    longest = rotary_tables(head_dim, config.rope_theta, max(lengths))
    cos, sin = (np.concatenate([part[:length] for length in lengths]) for part in longest)

    def linear(x: FloatArray, name: str, shape: tuple[int, int]) -> FloatArray:
        return layers.np_linear(weights, x, name, shape, bias=False)

    def norm(x: FloatArray, name: str) -> FloatArray:
        return np_rms_norm(weights, x, name, config.rms_norm_eps)

    def rotated(x: FloatArray, name: str, num_heads: int) -> FloatArray:
        x = norm(x.reshape(-1, head_dim), name).reshape(x.shape)
        return np_rotate(x, cos, sin, num_heads)

    table = (layers.word_rows(weights, (config.vocab_size, hidden)), hidden)
    x = weights.lookup("word_embeddings", table, np.concatenate(texts).tolist())
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        y = norm(x, at + "attention_norm")
        q = linear(y, at + "query", (heads * head_dim, hidden))
        k, v = (linear(y, at + name, (kv_heads * head_dim, hidden)) for name in ("key", "value"))
        q, k = rotated(q, at + "query_norm", heads), rotated(k, at + "key_norm", kv_heads)
        y = np_causal_attention(q, k, v, heads, kv_heads, lengths)
        x = x + linear(y, at + "attention_output", (hidden, heads * head_dim))
        y = norm(x, at + "mlp_norm")
        gate = layers.np_silu(linear(y, at + "gate", (inner, hidden)))
        x = x + linear(gate * linear(y, at + "up", (inner, hidden)), at + "down", (hidden, inner))
    return np.split(norm(x, "norm"), np.cumsum(lengths)[:-1])
