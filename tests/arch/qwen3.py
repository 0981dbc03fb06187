"""A tiny `qwen3`: a decoder whose query heads share key heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference import Array, linear, rotate, silu

# The heads together are wider than the hidden state, as in Qwen3-Embedding-0.6B.
CONFIG: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0,
    "max_position_embeddings": 1201,
    "vocab_size": 68,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {},
    "qwen3-narrow-heads": {"head_dim": 6, "num_key_value_heads": 4},
    "qwen3-one-key-head": {"head_dim": 24, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
}
DIGEST = "7c36ff675ddb"

_LLAMA_CPP = {
    "embed_tokens": "token_embd",
    "layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(config: Mapping[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights under the names of Qwen3-Embedding's file."""
    rng = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    n_query, n_key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def draw(*shape: int, std: float) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(std)

    made = {"embed_tokens.weight": draw(config["vocab_size"], hidden, std=1.0)}
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        for name, shape in (
            ("self_attn.q_proj", (n_query, hidden)),
            ("self_attn.k_proj", (n_key, hidden)),
            ("self_attn.v_proj", (n_key, hidden)),
            ("self_attn.o_proj", (hidden, n_query)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ):
            made[f"{at}{name}.weight"] = draw(*shape, std=0.2)
        for name, width in (
            ("self_attn.q_norm", head),
            ("self_attn.k_norm", head),
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
        ):
            made[f"{at}{name}.weight"] = 1 + draw(width, std=0.2)
    made["norm.weight"] = 1 + draw(hidden, std=0.2)
    return made


def gguf_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """Tensors under llama.cpp's names."""
    made: dict[str, NDArray[np.float32]] = {}
    for name, tensor in tensors.items():
        new = "output_norm.weight" if name == "norm.weight" else name
        for old, other in _LLAMA_CPP.items():
            new = new.replace(old, other)
        made[new] = tensor
    return made


def hidden_states(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float64]], ids: list[int]
) -> Array:
    """The last hidden states of one text, `(T, H)`."""
    eps, theta, head = config["rms_norm_eps"], config["rope_theta"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    x = np.stack([weights["embed_tokens.weight"][token] for token in ids])
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        y = _norm(x, weights[f"{at}input_layernorm.weight"], eps)
        q, k, v = (linear(weights, f"{at}self_attn.{name}_proj", y) for name in "qkv")
        q = _head_norms(q, weights[f"{at}self_attn.q_norm.weight"], eps)
        k = _head_norms(k, weights[f"{at}self_attn.k_norm.weight"], eps)
        q, k = rotate(q, heads, theta), rotate(k, kv_heads, theta)
        y = np.zeros_like(q)
        for query in range(heads):
            key = query // (heads // kv_heads)
            own, shared = (slice(j * head, (j + 1) * head) for j in (query, key))
            for t in range(len(ids)):
                scores = k[: t + 1, shared] @ q[t, own] / math.sqrt(head)
                share = np.exp(scores - scores.max())
                y[t, own] = (share / share.sum()) @ v[: t + 1, shared]
        x = x + linear(weights, f"{at}self_attn.o_proj", y)
        y = _norm(x, weights[f"{at}post_attention_layernorm.weight"], eps)
        gate = silu(linear(weights, f"{at}mlp.gate_proj", y))
        y = gate * linear(weights, f"{at}mlp.up_proj", y)
        x = x + linear(weights, f"{at}mlp.down_proj", y)
    return _norm(x, weights["norm.weight"], eps)


def _norm(x: Array, scale: Array, eps: float) -> Array:
    """RMS norm of each row."""
    return np.stack([row / math.sqrt((row @ row) / len(row) + eps) * scale for row in x])


def _head_norms(x: Array, scale: Array, eps: float) -> Array:
    """RMS norm of each head of each row."""
    return np.stack([_norm(row.reshape(-1, len(scale)), scale, eps).ravel() for row in x])
