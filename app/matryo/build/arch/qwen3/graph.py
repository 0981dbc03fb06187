"""Writes `qwen3` as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from matryo.build.arch._causal_attention import CausalAttention
from matryo.build.arch._layers import Layers, word_rows
from matryo.build.arch._rms_norm import emit_rms_norm
from matryo.build.arch._rotary import Rotary, emit_rotate, rotary_tables
from matryo.build.arch.qwen3.config import Config
from matryo.build.checkpoint import Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden = config.hidden_size
    attention = CausalAttention(
        net,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )
    # CausalAttention may add one token to the longest text.
    n_positions = config.max_position_embeddings + 1
    cos, sin = rotary_tables(config.head_dim, config.rope_theta, n_positions)
    tables = graph.constant("cos_cache", cos), graph.constant("sin_cache", sin)
    rotary = Rotary(graph.constant("first_position", np.zeros(1, np.int64)), *tables)

    def norm(x: str, name: str) -> str:
        return emit_rms_norm(net, x, name, width=hidden, eps=config.rms_norm_eps)

    def rotate(x: str, num_heads: int) -> str:
        return emit_rotate(graph, x, rotary, num_heads)

    table = (word_rows(weights, (config.vocab_size, hidden)), hidden)
    rows = weights.read_rows("word_embeddings", table)
    x = net.products.words(table, rows, net.remove_padding(INPUT_IDS))
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        y = _emit_attention(net, attention, norm(x, at + "attention_norm"), at, config, rotate)
        x = graph.op("Add", x, y)
        x = graph.op("Add", x, _emit_mlp(net, norm(x, at + "mlp_norm"), at, config))
    x = norm(x, "norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


def _emit_attention(
    net: Layers,
    attention: CausalAttention,
    x: str,
    at: str,
    config: Config,
    rotate: Callable[[str, int], str],
) -> str:
    """The attention block on `x`, `(N, H)`, which `attention_norm` gave; `(N, H)`."""
    hidden, head_dim = config.hidden_size, config.head_dim
    n_query = config.num_attention_heads * head_dim
    n_key = config.num_key_value_heads * head_dim

    def head_norm(x: str, name: str) -> str:
        def norm(heads: str) -> str:
            return emit_rms_norm(net, heads, name, width=head_dim, eps=config.rms_norm_eps)

        return attention.per_head(x, norm)

    # In a decoder, some channels of a norm are far larger than the others, whose values one byte
    # would hardly tell apart. The products of norms are therefore fine (docs/LOG.md).
    normed = net.products.operand(x)
    q, k, v = (
        net.linear(normed, at + name, (width, hidden), bias=False, fine=True)
        for name, width in (("query", n_query), ("key", n_key), ("value", n_key))
    )
    q, k = head_norm(q, at + "query_norm"), head_norm(k, at + "key_norm")
    y = attention.attend(q, k, v, rotate=rotate)
    return net.linear(y, at + "attention_output", (hidden, n_query), bias=False)


def _emit_mlp(net: Layers, x: str, at: str, config: Config) -> str:
    """The MLP on `x`, `(N, H)`, which `mlp_norm` gave: gated with SiLU; `(N, H)`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    widen = (inner, hidden)
    wide = net.products.operand(x)
    gate = net.silu(net.linear(wide, at + "gate", widen, bias=False, fine=True))
    # A row's scales are multiplied after `down`, where a row has fewer entries.
    up = net.products.product(wide, at + "up.weight", widen, fine=True, apply_scales=False)
    inside = net.products.operand(net.graph.op("Mul", up, gate), pending_scales=wide.scales)
    return net.linear(inside, at + "down", (hidden, inner), bias=False)
