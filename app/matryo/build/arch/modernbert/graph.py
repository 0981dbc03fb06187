"""Writes `modernbert` as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from matryo.build.arch._gated_mlp import emit_gated_mlp
from matryo.build.arch._layers import Layers
from matryo.build.arch._local_attention import LocalAttention
from matryo.build.arch._rotary import emit_rotate, rotary_tables
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
        at, square = f"layer.{i}.", (hidden, hidden)
        y = norm(x, at + "attention_norm") if i else x
        q, k, v = (
            net.linear(y, at + name, square, bias=config.attention_bias, fine=name == "value")
            for name in ("query", "key", "value")
        )
        y = attend(i, q, k, v)
        output, bias = at + "attention_output", config.attention_bias
        x = net.linear(y, output, square, bias=bias, residual=x)
        wide = net.products.operand(norm(x, at + "mlp_norm"), norm=at + "mlp_norm")
        widen, bias = (inner, hidden), config.mlp_bias
        x = emit_gated_mlp(net, wide, at, widen, activation, bias=bias, down_bias=bias, residual=x)
    x = norm(x, "final_norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


def _emit_attention(net: Layers, config: Config) -> Callable[[int, str, str, str], str]:
    """Writes the attention of layer `i` to `q`, `k` and `v`, each `(N, H)`; gives `(N, H)`."""
    graph, heads = net.graph, config.num_attention_heads
    first = graph.constant("first_position", np.zeros(1, np.int64))
    kinds = {config.is_local(i) for i in range(config.num_hidden_layers)}
    tables: dict[bool, tuple[str, str]] = {}
    for is_local in sorted(kinds):
        theta, name = config.rope_theta(local=is_local), "local" if is_local else "global"
        cos, sin = rotary_tables(config.head_size, theta, config.max_position_embeddings)
        tables[is_local] = (
            graph.constant(f"{name}.cos_cache", cos),
            graph.constant(f"{name}.sin_cache", sin),
        )
    local = LocalAttention(net, config.window, heads) if True in kinds else None

    def attend(i: int, q: str, k: str, v: str) -> str:
        is_local = config.is_local(i)

        def rotate(x: str) -> str:
            return emit_rotate(graph, x, first, tables[is_local], heads)

        if is_local and local:
            return local.attention(q, k, v, rotate)
        return net.attention(q, k, v, num_heads=heads, rotate=rotate)

    return attend
