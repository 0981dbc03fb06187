"""The forward of `nomic_bert` in numpy. A build checks the graph against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch import _layers as layers
from matryo.build.arch._gated_mlp import np_gated_mlp
from matryo.build.arch._rotary import np_rotate
from matryo.build.arch.nomic_bert.config import Config
from matryo.build.arch.nomic_bert.rotary import rotary_tables
from matryo.build.checkpoint import FloatArray, Weights


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
    tables = [rotary_tables(config, length) for length in lengths]
    cos, sin = (np.concatenate(part) for part in zip(*tables, strict=True))  # (N, D/2)

    def linear(x: FloatArray, name: str, shape: tuple[int, int], *, bias: bool) -> FloatArray:
        return layers.np_linear(weights, x, name, shape, bias=bias)

    def rotate(x: FloatArray) -> FloatArray:
        return np_rotate(x, cos, sin, config.num_attention_heads)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    x = layers.np_layer_norm(weights, x, "embedding_norm", eps)
    for i in range(config.num_hidden_layers):
        at, square = f"layer.{i}.", (hidden, hidden)
        q, k, v = (
            linear(x, at + name, square, bias=config.qkv_proj_bias)
            for name in ("query", "key", "value")
        )
        y = layers.np_attention(rotate(q), rotate(k), v, config.num_attention_heads, lengths)
        y = linear(y, at + "attention_output", square, bias=config.qkv_proj_bias)
        x = layers.np_layer_norm(weights, x + y, at + "attention_norm", eps)
        if config.has_experts(i):
            y = _experts(weights, config, x, at)
        elif config.hidden_act == "swiglu":
            bias = config.mlp_bias
            y = np_gated_mlp(
                weights, x, at, (inner, hidden), layers.np_silu, bias=bias, down_bias=bias
            )
        else:
            y = linear(x, at + "up", (inner, hidden), bias=config.mlp_bias)
            y = linear(layers.np_gelu(y), at + "down", (hidden, inner), bias=config.mlp_bias)
        x = layers.np_layer_norm(weights, x + y, at + "mlp_norm", eps)
    return np.split(x, np.cumsum(lengths)[:-1])


def _experts(weights: Weights, config: Config, x: FloatArray, at: str) -> FloatArray:
    """The mixture of experts on `x`, `(N, H)`, one expert after the other; `(N, H)`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    logits = x @ weights.read(f"{at}router.weight", (config.num_experts, hidden)).T
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)  # (N, E)
    chosen = np.argsort(-share, axis=-1, kind="stable")[:, : config.moe_top_k]
    y = np.zeros_like(x)
    for e in range(config.num_experts):
        name, rows = f"{at}expert.{e}.", np.flatnonzero((chosen == e).any(-1))
        if not len(rows):
            continue
        up = layers.np_linear(weights, x[rows], f"{name}up", (inner, hidden), bias=False)
        up = layers.np_gelu(up)
        down = layers.np_linear(weights, up, f"{name}down", (hidden, inner), bias=False)
        y[rows] += share[rows, e : e + 1] * down
    if config.mlp_bias and f"{at}experts.bias" not in weights.lacks:
        y += weights.read(f"{at}experts.bias", (hidden,))
    return y
