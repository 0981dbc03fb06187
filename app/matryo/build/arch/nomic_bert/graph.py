"""It as an ONNX graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from matryo.build.arch._layers import Layers
from matryo.build.arch.nomic_bert.config import Config
from matryo.build.arch.nomic_bert.rotary import rotary_tables
from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import CONTRIB, GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the graph."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, heads = config.hidden_size, config.num_attention_heads
    cos, sin = _emit_rotary_tables(graph, config)
    first = graph.constant("first_position", np.zeros(1, np.int64))

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, size=hidden, eps=config.layer_norm_eps)

    def rotate(x: str) -> str:
        # interleaved=0: first half with second half of each head, as NeoX has it.
        return graph.op(
            "RotaryEmbedding",
            x,
            first,
            cos,
            sin,
            domain=CONTRIB,
            num_heads=heads,
            interleaved=0,
        )

    x = net.embed_tokens((config.vocab_size, hidden), config.type_vocab_size)
    x = norm(x, "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, square = f"layer.{i}.", (hidden, hidden)
        # Separate products, so that nothing is split afterwards (docs/LOG.md).
        q, k, v = (
            net.linear(x, at + name, square, bias=config.qkv_proj_bias, fine=name == "value")
            for name in ("query", "key", "value")
        )
        y = net.attention(q, k, v, num_heads=heads, rotate=rotate)
        y = net.linear(y, at + "attention_output", square, bias=config.qkv_proj_bias)
        x = norm(graph.op("Add", x, y), at + "attention_norm")
        if config.has_experts(i):
            y = _emit_experts(net, x, at, config)
        else:
            y = _emit_mlp(net, x, at, config)
        x = norm(graph.op("Add", x, y), at + "mlp_norm")
    graph.output(LAST_HIDDEN_STATE, net.unpack(x), ("B", "T", hidden))


def _emit_mlp(net: Layers, x: str, at: str, config: Config) -> str:
    """The MLP on `(N, H)`, plain or gated."""
    products, bias = net.products, config.mlp_bias
    hidden, inner = config.hidden_size, config.intermediate_size
    widen = (inner, hidden)
    wide = products.operand(x, norm=at + "attention_norm")
    if config.hidden_act == "gelu":
        y = net.gelu(net.linear(wide, at + "up", widen, bias=bias))
        inside = products.operand(y, one_sided=True)
    else:
        gate = net.silu(net.linear(wide, at + "gate", widen, bias=bias))
        if bias:
            y, times = net.linear(wide, at + "up", widen, bias=bias), ""
        else:  # what scales a row may wait until after `down`, where rows are shorter
            y = products.product(wide, at + "up.weight", widen, times_steps=False)
            times = wide.steps
        inside = products.operand(net.graph.op("Mul", y, gate), times=times)
    return net.linear(inside, at + "down", (hidden, inner), bias=bias)


def _emit_rotary_tables(graph: GraphBuilder, config: Config) -> tuple[str, str]:
    """Cosines and sines: two tables, or, with dynamic NTK, a choice by the text's length.

    With NTK a run must hold one text if it is longer than the trained length; SOLO_TOKENS
    sees to that.
    """
    plain = config.model_copy(update={"rotary_scaling_factor": None})
    cos, sin = rotary_tables(plain, config.max_position_embeddings)
    if config.rotary_scaling_factor is None or (
        config.max_position_embeddings <= config.max_trained_positions
    ):
        return graph.constant("cos_cache", cos), graph.constant("sin_cache", sin)
    factor, trained, size = (
        config.rotary_scaling_factor,
        config.max_trained_positions,
        config.head_size,
    )

    def scalar(name: str, value: float) -> str:
        return graph.constant(f"ntk_{name}", np.array(value, np.float64))

    # In float64 up to the frequencies, as the reference has it, where the base is a Python float.
    n_tokens = graph.op("Shape", INPUT_IDS, start=1, end=2)
    length = graph.op("Cast", n_tokens, to=TensorProto.DOUBLE)
    ratio = graph.op("Mul", length, scalar("slope", factor / trained))
    ratio = graph.op("Sub", ratio, scalar("offset", factor - 1))
    ratio = graph.op("Max", ratio, scalar("one", 1.0))
    stretch = graph.op("Pow", ratio, scalar("power", size / (size - 2)))
    theta = graph.op("Mul", stretch, scalar("theta", config.rope_theta))
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    exponents = graph.constant("ntk_exponents", exponents.astype(np.float64))
    powers = graph.op("Cast", graph.op("Pow", theta, exponents), to=TensorProto.FLOAT)
    frequencies = graph.op("Reciprocal", powers)  # (D/2,)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None]
    first = graph.constant("ntk_first", np.zeros(1, np.int64))
    place = graph.op("Slice", graph.constant("positions", positions), first, n_tokens)
    angles = graph.op("Mul", place, frequencies)  # (T, D/2)
    # Texts of the trained length and less get the very numbers of a graph without NTK.
    short = graph.op("LessOrEqual", n_tokens, graph.constant("ntk_trained", np.array([trained])))

    def choose(name: str, table: FloatArray, stretched: str) -> str:
        plain = graph.constant(name, table[:trained])
        rows = graph.op("Min", n_tokens, graph.constant(f"{name}_rows", np.array([trained])))
        return graph.when(short, lambda: graph.op("Slice", plain, first, rows), lambda: stretched)

    return choose("cos_cache", cos, graph.op("Cos", angles)), choose(
        "sin_cache", sin, graph.op("Sin", angles)
    )


def _emit_experts(net: Layers, x: str, at: str, config: Config) -> str:
    """The mixture of experts on `(N, H)`: only the chosen experts compute a token.

    Each (token, choice) pair is a row. Rows are ordered by expert (TopK is a stable sort:
    ONNX breaks ties by the lower index), split, computed, joined, and put back. An expert
    without tokens computes on zero rows.
    """
    graph, top_k, n_experts = net.graph, config.moe_top_k, config.num_experts
    hidden, inner = config.hidden_size, config.intermediate_size

    def constant(name: str, value: int | list[int]) -> str:
        return graph.constant(f"{at}experts.{name}", np.array(value, np.int64))

    router = net.weights.read(f"{at}router.weight", (n_experts, hidden))
    # Routing stays in float32 in every precision: a token sent elsewhere is another vector.
    logits = graph.op("MatMul", x, graph.tensor(f"{at}router.weight", router.T.shape, [router.T]))
    share = graph.op("Softmax", logits, axis=-1)  # over all experts, (N, E)
    top = constant("top_k", [top_k])
    share, chosen = graph.ops("TopK", 2, share, top)  # (N, K); not normalised again
    chosen = graph.op("Reshape", chosen, constant("rows", [-1]))  # (N*K,)
    n_rows = graph.op("Shape", chosen)
    _, order = graph.ops("TopK", 2, chosen, n_rows, largest=0)
    _, place = graph.ops("TopK", 2, order, n_rows, largest=0)  # inverse of order
    hits = graph.op("OneHot", chosen, constant("depth", n_experts), constant("values", [0, 1]))
    counts = graph.op("ReduceSum", hits, constant("axis0", [0]), keepdims=0)  # (E,)
    token_of_row = graph.op("Div", order, constant("choices", top_k))
    rows = graph.ops("Split", n_experts, token_of_row, counts)
    products = net.products
    tokens = products.operand(x, norm=at + "attention_norm")
    ups = [
        products.product(
            products.rows(tokens, rows[e]), f"{at}expert.{e}.up.weight", (inner, hidden)
        )
        for e in range(n_experts)
    ]
    # Joined in between: an operand wants a row at least, and some expert may have none.
    inside = products.operand(net.gelu(graph.op("Concat", *ups, axis=0)), one_sided=True)
    downs = [
        products.product(part, f"{at}expert.{e}.down.weight", (hidden, inner))
        for e, part in enumerate(products.split(inside, n_experts, counts))
    ]
    y = graph.op("Concat", *downs, axis=0)
    place = graph.op("Reshape", place, constant("by_token", [-1, top_k]))
    y = graph.op("Gather", y, place)  # (N, K, H)
    y = graph.op("Mul", y, graph.op("Unsqueeze", share, constant("last", [-1])))
    y = graph.op("ReduceSum", y, constant("axis1", [1]), keepdims=0)
    if config.mlp_bias and f"{at}experts.bias" not in net.weights.lacks:
        y = graph.op("Add", y, net.vector(f"{at}experts.bias", hidden))  # once, not weighted
    return y
