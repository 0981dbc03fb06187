"""A tiny XLM-RoBERTa: Liu et al. 2019, arXiv:1907.11692, and Conneau et al. 2019, 1911.02116."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.arch._drawing import Drawing, Tensors, renamed

HIDDEN, HEADS, LAYERS, INNER, PAD = 32, 4, 2, 48, 1

CONFIG: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 1200 + PAD + 1,
    "pad_token_id": PAD,
    "type_vocab_size": 1,
    "vocab_size": 68,
}
# The texts of the tests have the ids from 4 on, so 7 is a padding token inside of a text.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "two-types": {"type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "pad-in-texts": {"pad_token_id": 7, "max_position_embeddings": 1208},
}
DIGEST = "b4319c9998af"


def tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """A checkpoint with random weights."""
    draw = Drawing(seed)
    made: Tensors = {
        "embeddings.word_embeddings.weight": draw.table(config["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": draw.table(
            config["max_position_embeddings"], HIDDEN
        ),
        "embeddings.token_type_embeddings.weight": draw.table(
            config["type_vocab_size"], HIDDEN, std=0.3
        ),
        "embeddings.position_ids": np.zeros((1, 4), np.float32),
    }
    made["embeddings.position_embeddings.weight"][config["pad_token_id"]] = 0  # as after training
    made |= draw.norm("embeddings.LayerNorm", HIDDEN) | draw.linear("pooler.dense", HIDDEN, HIDDEN)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            made |= draw.linear(f"{at}attention.self.{name}", HIDDEN, HIDDEN)
        made |= draw.linear(f"{at}attention.output.dense", HIDDEN, HIDDEN)
        made |= draw.norm(f"{at}attention.output.LayerNorm", HIDDEN)
        made |= draw.linear(f"{at}intermediate.dense", INNER, HIDDEN)
        made |= draw.linear(f"{at}output.dense", HIDDEN, INNER)
        made |= draw.norm(f"{at}output.LayerNorm", HIDDEN)
    return made


def position_rows(ids: list[int], pad: int) -> list[int]:
    """The row of each token: it counts the tokens up to there, without padding tokens."""
    rows: list[int] = []
    count = 0
    for token in ids:
        count += token != pad
        rows.append(pad if token == pad else pad + count)
    return rows


def hidden_states(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float64]], ids: list[int]
) -> NDArray[np.float64]:
    """The last hidden states of one text, `(T, H)`."""
    eps = config["layer_norm_eps"]
    words = weights["embeddings.word_embeddings.weight"]
    positions = weights["embeddings.position_embeddings.weight"]
    rows = position_rows(ids, config["pad_token_id"])
    x = np.stack([words[token] + positions[row] for token, row in zip(ids, rows, strict=True)])
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = reference.norm(weights, "embeddings.LayerNorm", x, eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        q, k, v = (
            reference.linear(weights, f"{at}attention.self.{name}", x)
            for name in ("query", "key", "value")
        )
        y = reference.attention(q, k, v, config["num_attention_heads"])
        y = reference.linear(weights, f"{at}attention.output.dense", y)
        x = reference.norm(weights, f"{at}attention.output.LayerNorm", x + y, eps)
        y = reference.gelu(reference.linear(weights, f"{at}intermediate.dense", x))
        y = reference.linear(weights, f"{at}output.dense", y)
        x = reference.norm(weights, f"{at}output.LayerNorm", x + y, eps)
    return x


def gguf_tensors(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors as llama.cpp's conversion has them: positions begin after the padding's row."""
    made = renamed(
        {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(("pooler", "embeddings.position_ids"))
        },
        {
            "embeddings.word_embeddings": "token_embd",
            "embeddings.token_type_embeddings": "token_types",
            "embeddings.position_embeddings": "position_embd",
            "embeddings.LayerNorm": "token_embd_norm",
            "encoder.layer.": "blk.",
            "attention.self.query": "attn_q",
            "attention.self.key": "attn_k",
            "attention.self.value": "attn_v",
            "attention.output.dense": "attn_output",
            "attention.output.LayerNorm": "attn_output_norm",
            "intermediate.dense": "ffn_up",
            "output.dense": "ffn_down",
            "output.LayerNorm": "layer_output_norm",
        },
    )
    made["position_embd.weight"] = made["position_embd.weight"][config["pad_token_id"] + 1 :]
    return made
