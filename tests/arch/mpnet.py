"""A tiny MPNet: Song et al. 2020, arXiv:2004.09297; its buckets are those of T5, 1910.10683."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.arch._drawing import Drawing, Tensors
from tests.arch.xlm_roberta import position_rows

HIDDEN, HEADS, LAYERS, INNER, PAD = 32, 4, 2, 48, 1

CONFIG: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 1200 + PAD + 1,
    "vocab_size": 68,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "two-heads": {"num_attention_heads": 2, "layer_norm_eps": 1e-12},
}
DIGEST = "7d694b792f49"


def tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """A checkpoint with random weights."""
    draw = Drawing(seed)
    made: Tensors = {
        "embeddings.word_embeddings.weight": draw.table(config["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": draw.table(
            config["max_position_embeddings"], HIDDEN
        ),
        "embeddings.position_ids": np.zeros((1, 4), np.float32),
        "encoder.relative_attention_bias.weight": draw.table(32, config["num_attention_heads"]),
    }
    made |= draw.norm("embeddings.LayerNorm", HIDDEN) | draw.linear("pooler.dense", HIDDEN, HIDDEN)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        for name in "qkvo":
            made |= draw.linear(f"{at}attention.attn.{name}", HIDDEN, HIDDEN)
        made |= draw.norm(f"{at}attention.LayerNorm", HIDDEN)
        made |= draw.linear(f"{at}intermediate.dense", INNER, HIDDEN)
        made |= draw.linear(f"{at}output.dense", HIDDEN, INNER)
        made |= draw.norm(f"{at}output.LayerNorm", HIDDEN)
    return made


def bucket(query: int, key: int) -> int:
    """The bucket of the distance between two tokens, by logarithms as in T5's code."""
    first, distance = (16 if key > query else 0), abs(key - query)
    if distance < 8:
        return first + distance
    # 1e-9: a distance at which a bucket begins belongs to that bucket.
    grown = 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8 + 1e-9)
    return first + min(grown, 15)


def hidden_states(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float64]], ids: list[int]
) -> NDArray[np.float64]:
    """The last hidden states of one text, `(T, H)`."""
    eps = config["layer_norm_eps"]
    words = weights["embeddings.word_embeddings.weight"]
    positions = weights["embeddings.position_embeddings.weight"]
    rows = position_rows(ids, PAD)
    x = np.stack([words[token] + positions[row] for token, row in zip(ids, rows, strict=True)])
    x = reference.norm(weights, "embeddings.LayerNorm", x, eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        y = reference.linear(weights, f"{at}attention.attn.o", _attention(config, weights, at, x))
        x = reference.norm(weights, f"{at}attention.LayerNorm", x + y, eps)
        y = reference.gelu(reference.linear(weights, f"{at}intermediate.dense", x))
        y = reference.linear(weights, f"{at}output.dense", y)
        x = reference.norm(weights, f"{at}output.LayerNorm", x + y, eps)
    return x


def _attention(
    config: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float64]],
    at: str,
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Attention with a bias by distance, one head and one token at a time."""
    q, k, v = (reference.linear(weights, f"{at}attention.attn.{name}", x) for name in "qkv")
    table = weights["encoder.relative_attention_bias.weight"]
    heads = config["num_attention_heads"]
    size = q.shape[1] // heads
    out = np.zeros_like(v)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        for t in range(len(x)):
            bias = np.array([table[bucket(t, key), head] for key in range(len(x))])
            scores = k[:, columns] @ q[t, columns] / math.sqrt(size) + bias
            weight = np.exp(scores - scores.max())
            out[t, columns] = (weight / weight.sum()) @ v[:, columns]
    return out
