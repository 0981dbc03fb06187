"""A tiny DistilBERT: Sanh et al. 2019, arXiv:1910.01108."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.arch._drawing import Drawing, Tensors, renamed

HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 32, 4, 2, 48, 1200

CONFIG: Mapping[str, Any] = {
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "activation": "gelu",
    "max_position_embeddings": POSITIONS,
    "vocab_size": 68,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"base": {}, "two-heads": {"n_heads": 2}}
DIGEST = "4f0fd930ff6c"


def tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """A checkpoint with random weights."""
    draw = Drawing(seed)
    made: Tensors = {
        "embeddings.word_embeddings.weight": draw.table(config["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": draw.table(POSITIONS, HIDDEN),
    }
    made |= draw.norm("embeddings.LayerNorm", HIDDEN)
    for i in range(LAYERS):
        at = f"transformer.layer.{i}."
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            made |= draw.linear(f"{at}attention.{name}", HIDDEN, HIDDEN)
        made |= draw.norm(f"{at}sa_layer_norm", HIDDEN)
        made |= draw.linear(f"{at}ffn.lin1", INNER, HIDDEN)
        made |= draw.linear(f"{at}ffn.lin2", HIDDEN, INNER)
        made |= draw.norm(f"{at}output_layer_norm", HIDDEN)
    return made


def hidden_states(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float64]], ids: list[int]
) -> NDArray[np.float64]:
    """The last hidden states of one text, `(T, H)`."""
    words = weights["embeddings.word_embeddings.weight"]
    positions = weights["embeddings.position_embeddings.weight"]
    x = np.stack([words[token] + positions[place] for place, token in enumerate(ids)])
    x = reference.norm(weights, "embeddings.LayerNorm", x, 1e-12)
    for i in range(config["n_layers"]):
        at = f"transformer.layer.{i}."
        q, k, v = (
            reference.linear(weights, f"{at}attention.{name}", x)
            for name in ("q_lin", "k_lin", "v_lin")
        )
        y = reference.attention(q, k, v, config["n_heads"])
        y = reference.linear(weights, f"{at}attention.out_lin", y)
        x = reference.norm(weights, f"{at}sa_layer_norm", x + y, 1e-12)
        y = reference.gelu(reference.linear(weights, f"{at}ffn.lin1", x))
        y = reference.linear(weights, f"{at}ffn.lin2", y)
        x = reference.norm(weights, f"{at}output_layer_norm", x + y, 1e-12)
    return x


def gguf_tensors(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors as llama.cpp's conversion has them."""
    return renamed(
        tensors,
        {
            "embeddings.word_embeddings": "token_embd",
            "embeddings.position_embeddings": "position_embd",
            "embeddings.LayerNorm": "token_embd_norm",
            "transformer.layer.": "blk.",
            "attention.q_lin": "attn_q",
            "attention.k_lin": "attn_k",
            "attention.v_lin": "attn_v",
            "attention.out_lin": "attn_output",
            "sa_layer_norm": "attn_output_norm",
            "ffn.lin1": "ffn_up",
            "ffn.lin2": "ffn_down",
            "output_layer_norm": "layer_output_norm",
        },
    )
