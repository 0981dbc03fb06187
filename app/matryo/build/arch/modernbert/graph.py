"""Writes `modernbert` as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from matryo.build.arch._gated_mlp import emit_gated_mlp
from matryo.build.arch._layers import Layers
from matryo.build.arch._local_attention import LocalAttention
from matryo.build.arch._rotary import Rotary, emit_rotate, rotary_tables
from matryo.build.arch.modernbert.config import Config
from matryo.build.checkpoint import Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, inner = config.hidden_size, config.intermediate_size
    activation: Literal["gelu", "silu"] = "gelu" if config.hidden_activation == "gelu" else "silu"
    attend = _emit_attention(net, config)

    def norm(x: str, name: str) -> str:
        eps, bias = config.norm_eps, config.norm_bias
        return net.layer_norm(x, name, width=hidden, eps=eps, bias=bias)

    x = norm(net.embed_tokens((config.vocab_size, hidden), 0), "embedding_norm")
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        y = attend(i, norm(x, at + "attention_norm") if i else x, at)
        output, bias = at + "attention_output", config.attention_bias
        x = net.linear(y, output, (hidden, hidden), bias=bias, residual=x)
        wide = net.products.operand(norm(x, at + "mlp_norm"), norm=at + "mlp_norm")
        widen, bias = (inner, hidden), config.mlp_bias
        x = emit_gated_mlp(net, wide, at, widen, activation, bias=bias, down_bias=bias, residual=x)
    x = norm(x, "final_norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


def _emit_attention(net: Layers, config: Config) -> Callable[[int, str, str], str]:
    """Writes the attention of layer `i`, whose names begin with `at`, to `x`; both `(N, H)`."""
    graph, heads, hidden = net.graph, config.num_attention_heads, config.hidden_size
    bias = config.attention_bias
    first = graph.constant("first_position", np.zeros(1, np.int64))
    kinds = {config.is_local(i) for i in range(config.num_hidden_layers)}
    rotary: dict[bool, Rotary] = {}
    for is_local in sorted(kinds):
        theta, name = config.rope_theta(local=is_local), "local" if is_local else "global"
        cos, sin = rotary_tables(config.head_size, theta, config.max_position_embeddings)
        rotary[is_local] = Rotary(
            first,
            graph.constant(f"{name}.cos_cache", cos),
            graph.constant(f"{name}.sin_cache", sin),
        )
    local = LocalAttention(net, config.window, heads) if True in kinds else None

    def attend(i: int, x: str, at: str) -> str:
        positions = rotary[config.is_local(i)]
        if not (config.is_local(i) and local):
            return net.self_attention(
                x, at, num_heads=heads, hidden=hidden, bias=bias, rotary=positions
            )
        q, k, v = (
            net.linear(x, at + name, (hidden, hidden), bias=bias, fine=name == "value")
            for name in ("query", "key", "value")
        )
        return local.attention(q, k, v, lambda y: emit_rotate(graph, y, positions, heads))

    return attend
