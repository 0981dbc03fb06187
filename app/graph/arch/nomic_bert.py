"""`model_type = "nomic_bert"`: BERT with rotary positions and a gated MLP.

Nussbaum et al. 2024, arXiv:2402.01613; reference code: nomic-ai/nomic-bert-2048,
`modeling_hf_nomic_bert.py`, and `NomicBertModel` in transformers.

Not covered yet: mixtures of experts (v2-moe), and stretching the rotary base past the
trained length (`rotary_scaling_factor`, null in the published configs).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.graph.arch import _layers as layers
from app.graph.checkpoint import Checkpoint, FloatArray, Part, Spelling, Weights
from app.graph.emit import CONTRIB, GraphBuilder

_Size = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Transformers' words for the config.

    The hub's `config.json` spells some as GPT-2 does: `n_embd`, `n_layer`, `n_head`,
    `n_inner`, `rotary_emb_base`, `layer_norm_epsilon`.
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
    type_vocab_size: _Size
    vocab_size: _Size
    moe_every_n_layers: Annotated[int, Field(ge=0)] = 0
    num_experts: _Size | None = None
    moe_top_k: _Size | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.moe_every_n_layers:
            msg = "layers of experts (moe_every_n_layers) have no graph yet"
            raise ValueError(msg)
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = "hidden_size must be an even multiple of num_attention_heads"
            raise ValueError(msg)
        return self

    @property
    def head_size(self) -> int:
        """Columns of one head; all of them are rotated."""
        return self.hidden_size // self.num_attention_heads


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """The hub's names, then those of transformers' `NomicBertModel`."""

    def both(ours: str, theirs: str, *, bias: bool) -> Spelling:
        kinds = ("weight", "bias") if bias else ("weight",)
        return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in kinds}

    qkv, mlp = config.qkv_proj_bias, config.mlp_bias
    gated = config.hidden_act == "swiglu"
    at, hub = "layer.{i}.", "encoder.layers.{i}."
    kinds = ("weight", "bias") if qkv else ("weight",)
    hub_names: Spelling = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **both("embedding_norm", "emb_ln", bias=True),
        # Rows of Wqkv are three-major: all of q, all of k, all of v.
        **{
            f"{at}{name}.{kind}": Part(f"{hub}attn.Wqkv.{kind}", index, 3)
            for index, name in enumerate(("query", "key", "value"))
            for kind in kinds
        },
        **both(at + "attention_output", hub + "attn.out_proj", bias=qkv),
        **both(at + "attention_norm", hub + "norm1", bias=True),
        **both(at + "up", hub + ("mlp.fc11" if gated else "mlp.fc1"), bias=mlp),
        **(both(at + "gate", hub + "mlp.fc12", bias=mlp) if gated else {}),
        **both(at + "down", hub + "mlp.fc2", bias=mlp),
        **both(at + "mlp_norm", hub + "norm2", bias=True),
    }
    own = "layers.{i}."
    transformers_names: Spelling = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **both("embedding_norm", "embeddings.LayerNorm", bias=True),
        **both(at + "query", own + "self_attn.q_proj", bias=qkv),
        **both(at + "key", own + "self_attn.k_proj", bias=qkv),
        **both(at + "value", own + "self_attn.v_proj", bias=qkv),
        **both(at + "attention_output", own + "self_attn.o_proj", bias=qkv),
        **both(at + "attention_norm", own + "post_attention_layernorm", bias=True),
        **both(at + "up", own + "mlp.up_proj", bias=mlp),
        **(both(at + "gate", own + "mlp.gate_proj", bias=mlp) if gated else {}),
        **both(at + "down", own + "mlp.down_proj", bias=mlp),
        **both(at + "mlp_norm", own + "post_mlp_layernorm", bias=True),
    }
    return hub_names, transformers_names


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """`checkpoint` under the names of `_spellings`."""
    return Weights(
        checkpoint,
        _spellings(config),
        ignored=(r"pooler\..*", r"cls\..*"),
        num_layers=config.num_hidden_layers,
    )


def rotary_tables(config: Config) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of every position, `(max_position_embeddings, head_size / 2)` float32.

    Angles are rounded to float32 where the reference rounds them: at position 8000 exact
    ones would differ from it by 5e-4.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies)
    return np.cos(angles), np.sin(angles)


def emit(graph: GraphBuilder, weights: Weights, config: Config) -> None:
    """Write the graph."""
    hidden, inner, heads = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
    )
    mask = layers.declare_inputs(graph)
    cos, sin = (
        graph.constant(name, table)
        for name, table in zip(("cos_cache", "sin_cache"), rotary_tables(config), strict=True)
    )
    first = graph.constant("first_position", np.zeros(1, np.int64))

    def norm(x: str, name: str) -> str:
        eps = config.layer_norm_eps
        return layers.layer_norm(graph, weights, x, name, size=hidden, eps=eps)

    def linear(x: str, name: str, size: tuple[int, int], *, bias: bool) -> str:
        return layers.linear(graph, weights, x, name, size, bias=bias)

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

    table = (config.vocab_size, hidden)
    x = layers.embed_tokens(graph, weights, table, config.type_vocab_size)
    x = norm(x, "embedding_norm")
    for i in range(config.num_hidden_layers):
        at, square = f"layer.{i}.", (hidden, hidden)
        # Separate products, so that nothing is split afterwards (docs/LOG.md).
        q, k, v = (
            linear(x, at + name, square, bias=config.qkv_proj_bias)
            for name in ("query", "key", "value")
        )
        y = layers.attention(graph, rotate(q), rotate(k), v, mask, num_heads=heads)
        y = linear(y, at + "attention_output", square, bias=config.qkv_proj_bias)
        x = norm(graph.op("Add", x, y), at + "attention_norm")
        y = linear(x, at + "up", (inner, hidden), bias=config.mlp_bias)
        if config.hidden_act == "swiglu":
            gate = linear(x, at + "gate", (inner, hidden), bias=config.mlp_bias)
            y = graph.op("Mul", y, layers.silu(graph, gate))
        else:
            y = layers.gelu(graph, y)
        y = linear(y, at + "down", (hidden, inner), bias=config.mlp_bias)
        x = norm(graph.op("Add", x, y), at + "mlp_norm")
    graph.output(layers.LAST_HIDDEN_STATE, x, ("B", "T", hidden))


def forward(weights: Weights, config: Config, input_ids: NDArray[np.int64]) -> FloatArray:
    """Hidden states `(T, H)` of one text, in plain numpy."""
    hidden, inner, eps = (
        config.hidden_size,
        config.intermediate_size,
        config.layer_norm_eps,
    )
    cos, sin = (table[: len(input_ids), None, :] for table in rotary_tables(config))  # (T, 1, D/2)

    def linear(x: FloatArray, name: str, size: tuple[int, int], *, bias: bool) -> FloatArray:
        return layers.np_linear(weights, x, name, size, bias=bias)

    def rotate(x: FloatArray) -> FloatArray:
        heads = x.reshape(len(x), config.num_attention_heads, config.head_size)
        a, b = np.split(heads, 2, axis=-1)
        turned = [a * cos - b * sin, b * cos + a * sin]
        return np.concatenate(turned, axis=-1, dtype=np.float32).reshape(x.shape)

    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, input_ids)
    x = layers.np_layer_norm(weights, x, "embedding_norm", eps)
    for i in range(config.num_hidden_layers):
        at, square = f"layer.{i}.", (hidden, hidden)
        q, k, v = (
            linear(x, at + name, square, bias=config.qkv_proj_bias)
            for name in ("query", "key", "value")
        )
        y = layers.np_attention(rotate(q), rotate(k), v, config.num_attention_heads)
        y = linear(y, at + "attention_output", square, bias=config.qkv_proj_bias)
        x = layers.np_layer_norm(weights, x + y, at + "attention_norm", eps)
        y = linear(x, at + "up", (inner, hidden), bias=config.mlp_bias)
        if config.hidden_act == "swiglu":
            y = y * layers.np_silu(linear(x, at + "gate", (inner, hidden), bias=config.mlp_bias))
        else:
            y = layers.np_gelu(y)
        y = linear(y, at + "down", (hidden, inner), bias=config.mlp_bias)
        x = layers.np_layer_norm(weights, x + y, at + "mlp_norm", eps)
    return x
