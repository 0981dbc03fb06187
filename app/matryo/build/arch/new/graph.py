"""Writes `new` as an ONNX graph."""

from __future__ import annotations

import numpy as np

from matryo.build.arch._gated_mlp import emit_gated_mlp
from matryo.build.arch._layers import Layers
from matryo.build.arch._rotary import Rotary
from matryo.build.arch.new.config import Config
from matryo.build.checkpoint import Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    cos, sin = config.rotary_tables(config.max_position_embeddings)
    tables = graph.constant("cos_cache", cos), graph.constant("sin_cache", sin)
    rotary = Rotary(graph.constant("first_position", np.zeros(1, np.int64)), *tables)

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, width=hidden, eps=config.layer_norm_eps)

    x = net.embed_tokens((config.vocab_size, hidden), config.type_vocab_size)
    x = norm(x, "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, widen = f"layer.{i}.", (inner, hidden)
        y = net.self_attention(x, at, num_heads=heads, hidden=hidden, bias=True, rotary=rotary)
        y = net.linear(y, at + "attention_output", (hidden, hidden), bias=True, residual=x)
        x = norm(y, at + "attention_norm")
        wide = net.products.operand(x, norm=at + "attention_norm")
        y = emit_gated_mlp(net, wide, at, widen, "gelu", bias=False, down_bias=True, residual=x)
        x = norm(y, at + "mlp_norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))
