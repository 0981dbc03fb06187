"""A tiny `new`, and its forward from Zhang et al. 2024, arXiv:2407.19669, and its published code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, Tensors, vocabulary
from tests.reference import Array, attention, gelu, linear, norm

CONFIG: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "rope_theta": 1000.0,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 1,
    "vocab_size": len(vocabulary()),
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "ntk": {"rope_scaling_factor": 8.0, "rope_theta": 20.0},
    "no-types": {"type_vocab_size": 0, "layer_norm_eps": 1e-5},
}
DIGEST = ""


def tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """A checkpoint with random weights, with one row of token types or without."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, std: float = 0.3) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(std)

    def module(name: str, *shape: int) -> Tensors:
        weight = draw(*shape) if len(shape) > 1 else 1 + draw(*shape, std=0.2)
        return {f"{name}.weight": weight, f"{name}.bias": draw(shape[0])}

    made = {"embeddings.word_embeddings.weight": draw(config["vocab_size"], HIDDEN, std=1.0)}
    if types := config["type_vocab_size"]:
        made["embeddings.token_type_embeddings.weight"] = draw(types, HIDDEN)
    made |= module("embeddings.LayerNorm", HIDDEN)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        made |= module(f"{at}attention.qkv_proj", 3 * HIDDEN, HIDDEN)
        made |= module(f"{at}attention.o_proj", HIDDEN, HIDDEN)
        made |= module(f"{at}attn_ln", HIDDEN)
        made[f"{at}mlp.up_gate_proj.weight"] = draw(2 * INNER, HIDDEN)
        made |= module(f"{at}mlp.down_proj", HIDDEN, INNER)
        made |= module(f"{at}mlp_ln", HIDDEN)
    return made | module("pooler.dense", HIDDEN, HIDDEN)


def _rotate(config: Mapping[str, Any], x: Array) -> Array:
    """Queries or keys with rotary positions, slowed down by NTK scaling."""
    size, factor = HIDDEN // HEADS, config.get("rope_scaling_factor", 1.0)
    out = x.copy()
    for pair in range(size // 2):
        frequency = 1 / (config["rope_theta"] * factor) ** (2 * pair / size)
        frequency /= factor ** (2 / size)
        for t in range(len(x)):
            cos, sin = math.cos(t * frequency), math.sin(t * frequency)
            for head in range(HEADS):
                a, b = head * size + pair, head * size + pair + size // 2
                out[t, a] = x[t, a] * cos - x[t, b] * sin
                out[t, b] = x[t, b] * cos + x[t, a] * sin
    return out


def hidden_states(config: Mapping[str, Any], weights: Mapping[str, Array], ids: list[int]) -> Array:
    """The last hidden states of one text, `(T, H)`."""
    w, eps = weights, config["layer_norm_eps"]
    x = w["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(w, "embeddings.LayerNorm", x, eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        q, k, v = np.split(linear(w, at + "attention.qkv_proj", x), 3, axis=1)
        y = attention(_rotate(config, q), _rotate(config, k), v, HEADS)
        x = norm(w, at + "attn_ln", x + linear(w, at + "attention.o_proj", y), eps)
        up, gate = np.split(linear(w, at + "mlp.up_gate_proj", x), 2, axis=1)
        y = linear(w, at + "mlp.down_proj", gelu(gate) * up)
        x = norm(w, at + "mlp_ln", x + y, eps)
    return x
