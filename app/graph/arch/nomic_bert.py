"""`model_type = "nomic_bert"`: BERT with rotary positions, a gated MLP, or mixtures of experts.

Nussbaum et al. 2024, arXiv:2402.01613, and Nussbaum and Duderstadt 2025, arXiv:2502.07972;
reference code: nomic-ai/nomic-bert-2048, `modeling_hf_nomic_bert.py`, and (without experts)
`NomicBertModel` in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.manifest import Precision
from app.graph.arch import _layers as layers
from app.graph.arch._layers import Layers
from app.graph.checkpoint import Checkpoint, FloatArray, Part, Spelling, Weights
from app.graph.emit import CONTRIB, GraphBuilder
from app.graph.interface import INPUT_IDS, LAST_HIDDEN_STATE, SOLO_TOKENS

_Size = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Transformers' words for the config.

    The hub's `config.json` spells some as GPT-2 does: `n_embd`, `n_layer`, `n_head`,
    `n_inner`, `rotary_emb_base`, `layer_norm_epsilon`.

    Attributes:
        moe_every_n_layers: of so many layers the second is a mixture of experts; 0 for none.
        moe_top_k: experts that compute each token.
        rotary_scaling_factor: stretches the rotary base for each text that is longer than
            `max_trained_positions` (dynamic NTK); None for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    intermediate_size: _Size
    hidden_act: Literal["swiglu", "gelu"]
    qkv_proj_bias: bool
    mlp_bias: bool
    layer_norm_eps: Annotated[float, Field(gt=0)]
    rope_theta: Annotated[float, Field(gt=0)]
    max_position_embeddings: _Size
    max_trained_positions: _Size = 2048
    rotary_scaling_factor: Annotated[float, Field(gt=0)] | None = None
    type_vocab_size: _Size
    vocab_size: _Size
    moe_every_n_layers: Annotated[int, Field(ge=0)] = 0
    num_experts: _Size = 1
    moe_top_k: _Size = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = "hidden_size must be an even multiple of num_attention_heads"
            raise ValueError(msg)
        if self.rotary_scaling_factor and self.max_trained_positions < SOLO_TOKENS:
            # A batch has one rotary table, so none of its texts may be a stretched one.
            msg = f"max_trained_positions must be at least {SOLO_TOKENS} with rotary_scaling_factor"
            raise ValueError(msg)
        if self.moe_every_n_layers and self.hidden_act != "gelu":
            msg = "experts (moe_every_n_layers) are known with hidden_act = 'gelu' only"
            raise ValueError(msg)
        if self.moe_every_n_layers and not self.moe_top_k <= self.num_experts:
            msg = f"moe_top_k is {self.moe_top_k}, but num_experts only {self.num_experts}"
            raise ValueError(msg)
        return self

    @property
    def head_size(self) -> int:
        """Columns of one head; all of them are rotated."""
        return self.hidden_size // self.num_attention_heads

    def has_experts(self, i: int) -> bool:
        """Whether layer `i` is a mixture of experts."""
        return self.moe_every_n_layers > 0 and i % self.moe_every_n_layers == 1


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """The hub's names, those of transformers' `NomicBertModel`, and llama.cpp's."""
    return _hub_names(config), _transformers_names(config), _gguf_names(config)


def _both(ours: str, theirs: str, *, bias: bool) -> Spelling:
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in kinds}


def _thirds(at: str, theirs: str, *, bias: bool) -> Spelling:
    """Rows of Wqkv are three-major: all of q, all of k, all of v."""
    return {
        f"{at}{name}.{kind}": Part(f"{theirs}.{kind}", index, 3)
        for index, name in enumerate(("query", "key", "value"))
        for kind in (("weight", "bias") if bias else ("weight",))
    }


def _hub_names(config: Config) -> Spelling:
    qkv, mlp, n_experts = config.qkv_proj_bias, config.mlp_bias, config.num_experts
    table: dict[str, str | Part] = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **_both("embedding_norm", "emb_ln", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, hub = f"layer.{i}.", f"encoder.layers.{i}."
        table |= _thirds(at, f"{hub}attn.Wqkv", bias=qkv)
        table |= _both(f"{at}attention_output", f"{hub}attn.out_proj", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{hub}norm1", bias=True)
        table |= _both(f"{at}mlp_norm", f"{hub}norm2", bias=True)
        if config.has_experts(i):
            table[f"{at}router.weight"] = f"{hub}mlp.router.layer.weight"
            for e in range(n_experts):
                w1, w2 = f"{hub}mlp.experts.mlp.w1", f"{hub}mlp.experts.mlp.w2"
                table[f"{at}expert.{e}.up.weight"] = Part(w1, e, n_experts)
                # The reference multiplies by w2 as it is, by w1 transposed.
                table[f"{at}expert.{e}.down.weight"] = Part(w2, e, n_experts, transposed=True)
            if mlp:
                table[f"{at}experts.bias"] = f"{hub}mlp.experts.bias"
            continue
        gated = config.hidden_act == "swiglu"
        table |= _both(f"{at}up", f"{hub}mlp.{'fc11' if gated else 'fc1'}", bias=mlp)
        table |= _both(f"{at}gate", f"{hub}mlp.fc12", bias=mlp) if gated else {}
        table |= _both(f"{at}down", f"{hub}mlp.fc2", bias=mlp)
    return table


def _transformers_names(config: Config) -> Spelling:
    qkv, mlp = config.qkv_proj_bias, config.mlp_bias
    table: dict[str, str | Part] = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **_both("embedding_norm", "embeddings.LayerNorm", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, own = f"layer.{i}.", f"layers.{i}."
        table |= _both(f"{at}query", f"{own}self_attn.q_proj", bias=qkv)
        table |= _both(f"{at}key", f"{own}self_attn.k_proj", bias=qkv)
        table |= _both(f"{at}value", f"{own}self_attn.v_proj", bias=qkv)
        table |= _both(f"{at}attention_output", f"{own}self_attn.o_proj", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{own}post_attention_layernorm", bias=True)
        table |= _both(f"{at}mlp_norm", f"{own}post_mlp_layernorm", bias=True)
        table |= _both(f"{at}up", f"{own}mlp.up_proj", bias=mlp)
        if config.hidden_act == "swiglu":
            table |= _both(f"{at}gate", f"{own}mlp.gate_proj", bias=mlp)
        table |= _both(f"{at}down", f"{own}mlp.down_proj", bias=mlp)
    return table


def _gguf_names(config: Config) -> Spelling:
    """llama.cpp's names; its conversion drops `experts.bias` (conversion/bert.py)."""
    qkv, mlp, n_experts = config.qkv_proj_bias, config.mlp_bias, config.num_experts
    table: dict[str, str | Part] = {
        "word_embeddings": "token_embd.weight",
        "token_type_embeddings": "token_types.weight",
        **_both("embedding_norm", "token_embd_norm", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, blk = f"layer.{i}.", f"blk.{i}."
        table |= _thirds(at, f"{blk}attn_qkv", bias=qkv)
        table |= _both(f"{at}attention_output", f"{blk}attn_output", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{blk}attn_output_norm", bias=True)
        table |= _both(f"{at}mlp_norm", f"{blk}layer_output_norm", bias=True)
        if config.has_experts(i):
            table[f"{at}router.weight"] = f"{blk}ffn_gate_inp.weight"
            for e in range(n_experts):
                table[f"{at}expert.{e}.up.weight"] = Part(f"{blk}ffn_up_exps.weight", e, n_experts)
                down = Part(f"{blk}ffn_down_exps.weight", e, n_experts)
                table[f"{at}expert.{e}.down.weight"] = down
            continue
        table |= _both(f"{at}up", f"{blk}ffn_up", bias=mlp)
        if config.hidden_act == "swiglu":
            table |= _both(f"{at}gate", f"{blk}ffn_gate", bias=mlp)
        table |= _both(f"{at}down", f"{blk}ffn_down", bias=mlp)
    return table


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """`checkpoint` under the names of `_spellings`."""
    return Weights(checkpoint, _spellings(config), ignored=(r"pooler\..*", r"cls\..*"))


def rotary_tables(config: Config, n_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of every position of a text, `(n_tokens, head_size / 2)` float32.

    Angles are rounded to float32 where the reference rounds them: at position 8000 exact
    ones would differ from it by 5e-4.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    theta = config.rope_theta * _stretch(config, n_tokens)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    angles = np.outer(np.arange(n_tokens, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def _stretch(config: Config, n_tokens: int) -> float:
    """What dynamic NTK multiplies the rotary base by, for a text of `n_tokens`.

    The reference takes the longest text of the batch and keeps the stretched table for
    whatever comes after. This is the text's own length, so that nothing depends on company.

    Source: nomic-bert-2048, `NomicBertDynamicNTKRotaryEmbedding`.
    """
    factor, trained = config.rotary_scaling_factor, config.max_trained_positions
    if factor is None or n_tokens <= trained:
        return 1.0
    ratio = factor * n_tokens / trained - (factor - 1)
    return ratio ** (config.head_size / (config.head_size - 2))


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


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states `(T, H)` of each text, in plain numpy."""
    lengths = [len(ids) for ids in texts]
    hidden, inner, eps = (
        config.hidden_size,
        config.intermediate_size,
        config.layer_norm_eps,
    )
    tables = [rotary_tables(config, length) for length in lengths]
    cos, sin = (
        np.concatenate(part)[:, None, :] for part in zip(*tables, strict=True)
    )  # (N, 1, D/2)

    def linear(x: FloatArray, name: str, size: tuple[int, int], *, bias: bool) -> FloatArray:
        return layers.np_linear(weights, x, name, size, bias=bias)

    def rotate(x: FloatArray) -> FloatArray:
        heads = x.reshape(len(x), config.num_attention_heads, config.head_size)
        a, b = np.split(heads, 2, axis=-1)
        turned = [a * cos - b * sin, b * cos + a * sin]
        return np.concatenate(turned, axis=-1, dtype=np.float32).reshape(x.shape)

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
        else:
            y = linear(x, at + "up", (inner, hidden), bias=config.mlp_bias)
            if config.hidden_act == "swiglu":
                gate = linear(x, at + "gate", (inner, hidden), bias=config.mlp_bias)
                y = y * layers.np_silu(gate)
            else:
                y = layers.np_gelu(y)
            y = linear(y, at + "down", (hidden, inner), bias=config.mlp_bias)
        x = layers.np_layer_norm(weights, x + y, at + "mlp_norm", eps)
    return np.split(x, np.cumsum(lengths)[:-1])


def _experts(weights: Weights, config: Config, x: FloatArray, at: str) -> FloatArray:
    """The mixture of experts on `(N, H)`, expert by expert."""
    hidden, inner = config.hidden_size, config.intermediate_size
    logits = x @ weights.read(f"{at}router.weight", (config.num_experts, hidden)).T
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)  # (T, E)
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
