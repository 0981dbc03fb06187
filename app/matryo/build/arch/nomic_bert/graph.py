"""Writes `nomic_bert` as an ONNX graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from matryo.build.arch._gated_mlp import emit_gated_mlp
from matryo.build.arch._layers import Layers
from matryo.build.arch._rotary import Rotary
from matryo.build.arch.nomic_bert.config import Config
from matryo.build.arch.nomic_bert.rotary import rotary_tables
from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision
from matryo.engine.onnx.interface import INPUT_IDS, LAST_HIDDEN_STATE


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    net = Layers(graph, weights, config.hidden_size, precision)
    hidden, heads = config.hidden_size, config.num_attention_heads
    tables = _emit_rotary_tables(graph, config)
    rotary = Rotary(graph.constant("first_position", np.zeros(1, np.int64)), *tables)

    def norm(x: str, name: str) -> str:
        return net.layer_norm(x, name, width=hidden, eps=config.layer_norm_eps)

    x = net.embed_tokens((config.vocab_size, hidden), config.type_vocab_size)
    x = norm(x, "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, bias = f"layer.{i}.", config.qkv_proj_bias
        y = net.self_attention(x, at, num_heads=heads, hidden=hidden, bias=bias, rotary=rotary)
        output = at + "attention_output"
        y = net.linear(y, output, (hidden, hidden), bias=bias, residual=x)
        x = norm(y, at + "attention_norm")
        if config.has_experts(i):
            y = graph.op("Add", x, _emit_experts(net, x, at, config))
        else:
            y = _emit_mlp(net, x, at, config)
        x = norm(y, at + "mlp_norm")
    graph.output(LAST_HIDDEN_STATE, net.restore_padding(x), ("B", "T", hidden))


def _emit_mlp(net: Layers, x: str, at: str, config: Config) -> str:
    """The MLP on `x`, `(N, H)`, plus `x`: gated with SiLU, or plain with GELU; `(N, H)`."""
    products, bias = net.products, config.mlp_bias
    hidden, inner = config.hidden_size, config.intermediate_size
    widen = (inner, hidden)
    wide = products.operand(x, norm=at + "attention_norm")
    if config.hidden_act == "swiglu":
        return emit_gated_mlp(net, wide, at, widen, "silu", bias=bias, down_bias=bias, residual=x)
    if products.native:
        y = net.linear(wide, at + "up", widen, bias=bias, activation="gelu")
    else:  # the nodes of earlier builds: an Add and a Gelu
        y = net.gelu(net.linear(wide, at + "up", widen, bias=bias))
    inside = products.operand(y, one_sided=True)
    return net.linear(inside, at + "down", (hidden, inner), bias=bias, residual=x)


def _emit_rotary_tables(graph: GraphBuilder, config: Config) -> tuple[str, str]:
    """Names of the cosines and the sines; each `(positions, head_size / 2)` float32.

    Without dynamic NTK they are constants. With NTK the graph computes both for a text that is
    longer than the trained length. Such a text runs alone, because `Config` requires a trained
    length of at least `SOLO_TOKENS`.
    """
    plain = config.model_copy(update={"rotary_scaling_factor": None})
    cos, sin = rotary_tables(plain, config.max_position_embeddings)
    if config.rotary_scaling_factor is None or (
        config.max_position_embeddings <= config.max_trained_positions
    ):
        return graph.constant("cos_cache", cos), graph.constant("sin_cache", sin)
    factor, trained, head_size = (
        config.rotary_scaling_factor,
        config.max_trained_positions,
        config.head_size,
    )

    def scalar(name: str, value: float) -> str:
        return graph.constant(f"ntk_{name}", np.array(value, np.float64))

    # The base is float64, because it is a Python float in the reference.
    n_tokens = graph.op("Shape", INPUT_IDS, start=1, end=2)
    length = graph.op("Cast", n_tokens, to=TensorProto.DOUBLE)
    ratio = graph.op("Mul", length, scalar("slope", factor / trained))
    ratio = graph.op("Sub", ratio, scalar("offset", factor - 1))
    ratio = graph.op("Max", ratio, scalar("one", 1.0))
    stretch = graph.op("Pow", ratio, scalar("power", head_size / (head_size - 2)))
    theta = graph.op("Mul", stretch, scalar("theta", config.rope_theta))
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    exponents = graph.constant("ntk_exponents", exponents.astype(np.float64))
    powers = graph.op("Cast", graph.op("Pow", theta, exponents), to=TensorProto.FLOAT)
    frequencies = graph.op("Reciprocal", powers)  # (D/2,)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None]
    first = graph.constant("ntk_first", np.zeros(1, np.int64))
    positions = graph.op("Slice", graph.constant("positions", positions), first, n_tokens)
    angles = graph.op("Mul", positions, frequencies)  # (T, D/2)
    # Texts up to the trained length get the same bits as in a graph without NTK.
    short = graph.op("LessOrEqual", n_tokens, graph.constant("ntk_trained", np.array([trained])))

    def choose(name: str, table: FloatArray, stretched: str) -> str:
        plain = graph.constant(name, table[:trained])
        rows = graph.op("Min", n_tokens, graph.constant(f"{name}_rows", np.array([trained])))
        return graph.when(short, lambda: graph.op("Slice", plain, first, rows), lambda: stretched)

    return choose("cos_cache", cos, graph.op("Cos", angles)), choose(
        "sin_cache", sin, graph.op("Sin", angles)
    )


def _emit_experts(net: Layers, x: str, at: str, config: Config) -> str:
    """The mixture of experts on `x`, `(N, H)`; `(N, H)`. A token costs only its chosen experts.

    Each pair of a token and a chosen expert is a row. The graph sorts the rows by expert, splits
    them, computes each expert's rows, joins the results and restores the first order. TopK sorts
    stably, because ONNX breaks ties by the lower index. An expert that no token chose computes
    zero rows.

    Source: Nussbaum and Duderstadt 2025, arXiv:2502.07972; nomic-bert-2048, `NomicExperts`.
    """
    graph, top_k, n_experts = net.graph, config.moe_top_k, config.num_experts
    hidden, inner = config.hidden_size, config.intermediate_size

    def constant(name: str, value: int | list[int]) -> str:
        return graph.constant(f"{at}experts.{name}", np.array(value, np.int64))

    router = net.weights.read(f"{at}router.weight", (n_experts, hidden))
    # Routing is float32 in every precision: another choice of expert changes a vector much.
    logits = graph.op("MatMul", x, graph.tensor(f"{at}router.weight", router.T.shape, [router.T]))
    share = graph.op("Softmax", logits, axis=-1)  # over all experts, (N, E)
    top = constant("top_k", [top_k])
    share, chosen = graph.ops("TopK", 2, share, top)  # (N, K); they need not add up to 1
    chosen = graph.op("Reshape", chosen, constant("rows", [-1]))  # (N*K,)
    n_rows = graph.op("Shape", chosen)
    _, order = graph.ops("TopK", 2, chosen, n_rows, largest=0)
    _, sorted_row = graph.ops("TopK", 2, order, n_rows, largest=0)  # the inverse of order
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
    # The rows of all experts are one operand: an operand needs a row, and an expert may have none.
    inside = products.operand(net.gelu(graph.op("Concat", *ups, axis=0)), one_sided=True)
    downs = [
        products.product(part, f"{at}expert.{e}.down.weight", (hidden, inner))
        for e, part in enumerate(products.split(inside, n_experts, counts))
    ]
    y = graph.op("Concat", *downs, axis=0)
    sorted_row = graph.op("Reshape", sorted_row, constant("by_token", [-1, top_k]))
    y = graph.op("Gather", y, sorted_row)  # (N, K, H)
    y = graph.op("Mul", y, graph.op("Unsqueeze", share, constant("last", [-1])))
    y = graph.op("ReduceSum", y, constant("axis1", [1]), keepdims=0)
    if config.mlp_bias and f"{at}experts.bias" not in net.weights.lacks:
        y = graph.op("Add", y, net.vector(f"{at}experts.bias", hidden))  # once for all experts
    return y
