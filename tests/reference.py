"""Encoders in float64, loop by loop, from the papers: what every graph is held against.

Written apart from `matryo.build.arch`, and slower on purpose: no fusing, no folding, no
batching, one head and one token at a time where that makes the maths plain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import arch

Array = NDArray[np.float64]


def hidden_states(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], ids: list[int]
) -> Array:
    """Last hidden states `(T, H)` of one text."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    if (model_type := config["model_type"]) in arch.MODEL_TYPES:
        return arch.of(model_type).hidden_states(config, weights, ids)
    forward = {"bert": _bert, "nomic_bert": _nomic_bert}[model_type]
    return forward(config, weights, ids)


Layer = tuple[NDArray[np.float32], NDArray[np.float32] | None, str]
"""Weight `(out, in)`, bias and activation of a dense layer."""


def pooled(
    hidden: Array,
    *,
    layer_norm_eps: float | None,
    dimensions: int,
    pools: Sequence[str] = ("mean_pool",),
    between: Sequence[str] | None = None,
    layers: Sequence[Layer] = (),
) -> Array:
    """The pools joined, the steps `between` (a layer norm if there is an epsilon), cut, L2."""
    x = [value for name in pools for value in _pool(hidden, name)]
    dense = iter(layers)
    for step in ["layer_norm"] * (layer_norm_eps is not None) if between is None else between:
        if step == "dense":
            x = _dense(x, *next(dense))
        elif step == "layer_norm":
            assert layer_norm_eps is not None
            mean = sum(x) / len(x)
            variance = sum((value - mean) ** 2 for value in x) / len(x)
            x = [(value - mean) / math.sqrt(variance + layer_norm_eps) for value in x]
        else:
            x = _unit(x)
    return np.array(_unit(x[:dimensions]))


def _pool(hidden: Array, name: str) -> list[float]:
    """One state of a text, component by component."""
    n_tokens = len(hidden)
    pooled: list[float] = []
    for column in hidden.T.tolist():
        total = math.fsum(column)
        weighted = math.fsum(n * value for n, value in enumerate(column, 1))
        pooled.append(
            {
                "mean_pool": total / n_tokens,
                "mean_sqrt_len_pool": total / math.sqrt(n_tokens),
                "weighted_mean_pool": weighted / sum(range(1, n_tokens + 1)),
                "max_pool": max(column),
                "cls_pool": column[0],
                "last_token_pool": column[-1],
            }[name]
        )
    return pooled


def _dense(
    x: list[float],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    activation: str,
) -> list[float]:
    """A linear layer and its activation, one component at a time."""
    functions: dict[str, Callable[[float], float]] = {
        "identity": lambda v: v,
        "tanh": math.tanh,
        "relu": lambda v: max(v, 0.0),
        "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "silu": lambda v: v / (1 + math.exp(-v)),
    }
    y: list[float] = []
    for index, row in enumerate(weight.tolist()):
        product = math.fsum(w * value for w, value in zip(row, x, strict=True))
        y.append(functions[activation](product + (0.0 if bias is None else float(bias[index]))))
    return y


def _unit(x: list[float]) -> list[float]:
    """The vector at length 1; a vector of zeros stays zero."""
    norm = math.sqrt(sum(value * value for value in x))
    return [value / norm if norm else 0.0 for value in x]


def linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """`x @ weight.T`, plus the bias if there is one."""
    bias = weights.get(f"{name}.bias", 0.0)
    return np.stack([weights[f"{name}.weight"] @ row + bias for row in x])


def norm(weights: Mapping[str, Array], name: str, x: Array, eps: float) -> Array:
    """Layer norm of each row, with scale and shift."""
    rows: list[Array] = []
    for row in x:
        scaled = (row - row.mean()) / math.sqrt(row.var() + eps)
        rows.append(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])
    return np.stack(rows)


def gelu(x: Array) -> Array:
    """Exact GELU."""
    flat = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel().tolist()]
    return np.array(flat).reshape(x.shape)


def silu(x: Array) -> Array:
    """SiLU."""
    flat = [v / (1 + math.exp(-v)) for v in x.ravel().tolist()]
    return np.array(flat).reshape(x.shape)


def attention(q: Array, k: Array, v: Array, n_heads: int) -> Array:
    """Bidirectional attention of one text, one head and one token at a time."""
    size = q.shape[1] // n_heads
    out = np.zeros_like(v)
    for head in range(n_heads):
        columns = slice(head * size, (head + 1) * size)
        for t in range(len(q)):
            scores = k[:, columns] @ q[t, columns]
            weight = np.exp((scores - scores.max()) / math.sqrt(size))
            out[t, columns] = (weight / weight.sum()) @ v[:, columns]
    return out


def _bert(config: Mapping[str, Any], w: Mapping[str, Array], ids: list[int]) -> Array:
    eps = config["layer_norm_eps"]
    x = np.stack(
        [
            w["embeddings.word_embeddings.weight"][token]
            + w["embeddings.position_embeddings.weight"][place]
            + w["embeddings.token_type_embeddings.weight"][0]
            for place, token in enumerate(ids)
        ]
    )
    x = norm(w, "embeddings.LayerNorm", x, eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        q, k, v = (linear(w, f"{at}attention.self.{name}", x) for name in ("query", "key", "value"))
        y = attention(q, k, v, config["num_attention_heads"])
        y = linear(w, at + "attention.output.dense", y)
        x = norm(w, at + "attention.output.LayerNorm", x + y, eps)
        y = gelu(linear(w, at + "intermediate.dense", x))
        x = norm(w, at + "output.LayerNorm", x + linear(w, at + "output.dense", y), eps)
    return x


def rotate(x: Array, n_heads: int, theta: float) -> Array:
    """Queries or keys with rotary positions."""
    size = x.shape[1] // n_heads
    out = x.copy()
    for place in range(len(x)):
        for head in range(n_heads):
            for pair in range(size // 2):
                a, b = head * size + pair, head * size + pair + size // 2
                angle = place / theta ** (2 * pair / size)
                out[place, a] = x[place, a] * math.cos(angle) - x[place, b] * math.sin(angle)
                out[place, b] = x[place, b] * math.cos(angle) + x[place, a] * math.sin(angle)
    return out


def _stretch(config: Mapping[str, Any], n_tokens: int) -> float:
    """Dynamic NTK's factor of the rotary base, by the text's own length."""
    factor, trained = config.get("rotary_scaling_factor"), config.get("max_trained_positions", 2048)
    if factor is None or n_tokens <= trained:
        return 1.0
    size = config["hidden_size"] // config["num_attention_heads"]
    return (factor * n_tokens / trained - (factor - 1)) ** (size / (size - 2))


def _nomic_bert(config: Mapping[str, Any], w: Mapping[str, Array], ids: list[int]) -> Array:
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    theta = config["rope_theta"] * _stretch(config, len(ids))
    token_type = w["embeddings.token_type_embeddings.weight"][0]
    x = np.stack([w["embeddings.word_embeddings.weight"][token] + token_type for token in ids])
    x = norm(w, "emb_ln", x, eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{i}."
        q, k, v = np.split(linear(w, at + "attn.Wqkv", x), 3, axis=1)
        y = attention(rotate(q, heads, theta), rotate(k, heads, theta), v, heads)
        x = norm(w, at + "norm1", x + linear(w, at + "attn.out_proj", y), eps)
        every = config.get("moe_every_n_layers", 0)
        if every and i % every == 1:
            y = np.stack([_experts(config, w, at, row) for row in x])
        else:
            if config["hidden_act"] == "swiglu":
                y = linear(w, at + "mlp.fc11", x) * silu(linear(w, at + "mlp.fc12", x))
            else:
                y = gelu(linear(w, at + "mlp.fc1", x))
            y = linear(w, at + "mlp.fc2", y)
        x = norm(w, at + "norm2", x + y, eps)
    return x


def _experts(config: Mapping[str, Any], w: Mapping[str, Array], at: str, x: Array) -> Array:
    """One token through its best experts: softmax over all, the chosen not normalised again."""
    count, inner = config["num_experts"], config["intermediate_size"]
    logits = w[at + "mlp.router.layer.weight"] @ x
    share = np.exp(logits - logits.max())
    share /= share.sum()
    y = w.get(at + "mlp.experts.bias", np.zeros_like(x)).copy()  # once, not weighted
    for expert in sorted(range(count), key=lambda e: -share[e])[: config["moe_top_k"]]:
        rows = slice(expert * inner, (expert + 1) * inner)
        up = gelu(w[at + "mlp.experts.mlp.w1"][rows] @ x)
        y += share[expert] * (up @ w[at + "mlp.experts.mlp.w2"][rows])
    return y
