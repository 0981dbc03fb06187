"""What the operators of matryo-native compute, in plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matryo.build.precision.panels import GROUP, LANES
from tests.native.operators import Floats, Layer

Doubles = NDArray[np.float64]


def rounded(layer: Layer, x: Floats) -> tuple[list[NDArray[np.int64]], list[Floats]]:
    """Activations as integers, minus the zero point, and their scales; each by group."""
    if layer.channels is not None:
        x = x * layer.channels
    k, values, scales = x.shape[1], list[NDArray[np.int64]](), list[Floats]()
    width, above, below = GROUP, 255 - layer.zero_point, layer.zero_point
    if layer.numbers == "words":
        width, above = k, min((2**31 - 1) // (127 * k), 2**15 - 1)
        below = above
    zero = np.float32(0)
    for start in range(0, k, width):
        group = x[:, start : start + width]
        high = np.maximum(group.max(1), zero) * (np.float32(1) / np.float32(above))
        low = np.maximum(-group.min(1), zero) * (np.float32(1) / np.float32(below))
        scale = np.maximum(np.maximum(high, low), np.float32(1e-20))[:, None]
        integers = np.rint(group * (np.float32(1) / scale)).astype(np.int64)
        if layer.numbers == "bytes":
            integers = np.clip(integers, -below, above)
        values.append(integers)
        scales.append(scale)
    return values, scales


def products(layer: Layer, x: Floats) -> Floats:
    """The products of a layer, before bias and activation, `(rows, panels * 16)`.

    Integers are exact. With one group, floats are multiplied as the operator does that.
    """
    weights = layer.panels.reshape(-1, layer.panels.shape[-1])
    if layer.numbers == "floats":
        return (x.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.float32)
    values, scales = rounded(layer, x)
    total: Any = np.float32(0)
    start = 0
    for group, row_scale, scale in zip(values, scales, layer.scales, strict=True):
        sums = group @ weights[:, start : start + group.shape[1]].T.astype(np.int64)
        assert np.abs(sums).max(initial=0) < 2**31
        total = total + sums.astype(np.float32) * row_scale * scale
        start += group.shape[1]
    return total


def gelu(x: Any) -> Doubles:
    """Exact GELU in float64."""
    wide = np.asarray(x, np.float64)
    return wide * (1 + np.vectorize(math.erf, otypes=[np.float64])(wide / math.sqrt(2))) / 2


def silu(x: Any) -> Doubles:
    """SiLU in float64."""
    wide = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):  # infinity below -709, where SiLU is zero
        return wide / (1 + np.exp(-wide))


def linear(layer: Layer, x: Floats, residual: Floats | None = None) -> NDArray[Any]:
    """A whole layer; float32 without an activation, float64 with one."""
    y: NDArray[Any] = products(layer, x)
    if layer.bias is not None:
        y = y + layer.bias
    if layer.activation == "gelu":
        y = gelu(y)
    if layer.gated:
        panels = y.reshape(len(x), len(layer.panels) // 2, 2, LANES)
        gate = (silu if layer.activation == "silu_gate" else gelu)(panels[:, :, 1])
        y = (panels[:, :, 0] * gate).reshape(len(x), len(layer.panels) // 2 * LANES)
    y = y[:, : layer.columns]
    return y if residual is None else residual + y


def rotate(x: Doubles, rotary: tuple[Floats, Floats]) -> Doubles:
    """Heads `(tokens, heads, size)` rotated by their position."""
    cos, sin = (table[: len(x), None] for table in rotary)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), -1)


def attention(
    qkv: Floats,
    lengths: Sequence[int],
    *,
    num_heads: int,
    rotary: tuple[Floats, Floats] | None = None,
    scale: float | None = None,
) -> Doubles:
    """Attention within each text, in float64; `(rows, width)`."""
    width = qkv.shape[1] // 3
    size, start, y = width // num_heads, 0, np.empty((len(qkv), width))
    for n in lengths:
        heads = qkv[start : start + n].astype(np.float64).reshape(n, 3, num_heads, size)
        q, k, v = heads[:, 0], heads[:, 1], heads[:, 2]
        if rotary:
            q, k = rotate(q, rotary), rotate(k, rotary)
        scores = np.einsum("qhd,khd->hqk", q, k) * (size**-0.5 if scale is None else scale)
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
        weights /= weights.sum(-1, keepdims=True)
        y[start : start + n] = np.einsum("hqk,khd->qhd", weights, v).reshape(n, width)
        start += n
    return y


def layer_norm(x: Floats, scale: Floats, bias: Floats | None, epsilon: float) -> Doubles:
    """Layer norm over the last axis, in float64."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * scale
    return y if bias is None else y + bias
