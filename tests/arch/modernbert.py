"""A tiny `modernbert`, and its forward from Warner et al. 2024, arXiv:2412.13663."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, Tensors, vocabulary
from tests.reference import Array, attention, gelu, linear, rotate, silu

CONFIG: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2 * LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "local_attention": 8,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 100.0,
    "max_position_embeddings": POSITIONS,
    "vocab_size": len(vocabulary()),
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "biases-silu": {
        "hidden_activation": "silu",
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "global_attn_every_n_layers": 2,
    },
    "layer-types": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
        + ["full_attention"],
        "local_attention": 3,
    },
    "published-window": {"local_attention": 128},
}
DIGEST = ""


def _modules(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight matrix, and of each norm's weight, by the module's name."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.norm": (HIDDEN,), "final_norm": (HIDDEN,)}
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        shapes |= {f"{at}attn_norm": (HIDDEN,)} if i else {}
        shapes |= {
            f"{at}attn.Wqkv": (3 * HIDDEN, HIDDEN),
            f"{at}attn.Wo": (HIDDEN, HIDDEN),
            f"{at}mlp_norm": (HIDDEN,),
            f"{at}mlp.Wi": (2 * INNER, HIDDEN),
            f"{at}mlp.Wo": (HIDDEN, INNER),
        }
    return shapes


def tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """A checkpoint with random weights, and the head of a masked language model."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, std: float = 0.2) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(std)

    made = {"embeddings.tok_embeddings.weight": draw(config["vocab_size"], HIDDEN, std=1.0)}
    for name, shape in _modules(config).items():
        is_norm = "norm" in name
        key = "norm_bias" if is_norm else "attention_bias" if ".attn." in name else "mlp_bias"
        made[f"{name}.weight"] = 1 + draw(*shape, std=0.2) if is_norm else draw(*shape)
        if config.get(key, False):
            made[f"{name}.bias"] = draw(shape[0])
    return made | {"head.dense.weight": draw(HIDDEN, HIDDEN), "decoder.bias": draw(4)}


def gguf_tensors(_config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors as llama.cpp's conversion has them."""
    words = {
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "final_norm": "output_norm",
        "layers.": "blk.",
        "attn.Wqkv": "attn_qkv",
        "attn.Wo": "attn_output",
        "mlp.Wi": "ffn_up",
        "mlp.Wo": "ffn_down",
        "mlp_norm": "ffn_norm",
    }
    made: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, other in words.items():
            new = new.replace(old, other)
        if not name.startswith(("head.", "decoder.")):
            made[new] = tensor
    return made


def _norm(config: Mapping[str, Any], w: Mapping[str, Array], name: str, x: Array) -> Array:
    """Layer norm of each row, with a shift only if the checkpoint has one."""
    rows = [(row - row.mean()) / math.sqrt(row.var() + config["norm_eps"]) for row in x]
    return np.stack(rows) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)


def _local(q: Array, k: Array, v: Array, window: int) -> Array:
    """Attention of each token to the tokens at most `window` positions away."""
    rows: list[Array] = []
    for t in range(len(q)):
        first = max(t - window, 0)
        near = slice(first, t + window + 1)
        # The queries of the other tokens do not matter: only the row of t is kept.
        rows.append(attention(q[near], k[near], v[near], HEADS)[t - first])
    return np.stack(rows)


def hidden_states(config: Mapping[str, Any], weights: Mapping[str, Array], ids: list[int]) -> Array:
    """The last hidden states of one text, `(T, H)`."""
    w, every = weights, config.get("global_attn_every_n_layers", 3)
    act = {"gelu": gelu, "silu": silu}[config["hidden_activation"]]
    x = _norm(config, w, "embeddings.norm", w["embeddings.tok_embeddings.weight"][ids])
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        local = i % every != 0
        if kinds := config.get("layer_types"):
            local = kinds[i] == "sliding_attention"
        y = _norm(config, w, at + "attn_norm", x) if i else x
        q, k, v = np.split(linear(w, at + "attn.Wqkv", y), 3, axis=1)
        theta = config["local_rope_theta" if local else "global_rope_theta"]
        q, k = rotate(q, HEADS, theta), rotate(k, HEADS, theta)
        if local:
            y = _local(q, k, v, config["local_attention"] // 2)
        else:
            y = attention(q, k, v, HEADS)
        x = x + linear(w, at + "attn.Wo", y)
        y = _norm(config, w, at + "mlp_norm", x)
        gate, up = np.split(linear(w, at + "mlp.Wi", y), 2, axis=1)
        x = x + linear(w, at + "mlp.Wo", act(gate) * up)
    return _norm(config, w, "final_norm", x)
