"""The gated MLP that several architectures share, as ONNX nodes and as a numpy function.

The output is `down(activate(gate(x)) * up(x))`.

Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from matryo.build.arch import _layers as layers
from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.precision import Activation, Fused, Operand


def emit_gated_mlp(
    net: Layers,
    x: Operand,
    at: str,
    shape: tuple[int, int],
    activation: Literal["silu", "gelu"],
    *,
    bias: bool,
    down_bias: bool,
    residual: str,
) -> str:
    """The gated MLP on `x`, `(N, H)`, plus the residual; `(N, H)`.

    Args:
        net: the layers of the graph.
        x: the input, as the left side of products.
        at: prefix of the names of the layers `gate`, `up` and `down`.
        shape: shape of the weights of `gate` and `up`, `(inner, H)`.
        activation: of the gate.
        bias: whether `gate` and `up` have a bias.
        down_bias: whether `down` has a bias.
        residual: `(N, H)`, added at the end.
    """
    inner, hidden = shape
    if net.products.native:
        biases = (f"{at}up.bias", f"{at}gate.bias") if bias else ()
        gated: Activation = "silu_gate" if activation == "silu" else "gelu_gate"
        layer = Fused((f"{at}up.weight", f"{at}gate.weight"), shape, biases, gated)
        inside = net.products.operand(net.products.fused(x, layer))
        return net.linear(inside, f"{at}down", (hidden, inner), bias=down_bias, residual=residual)
    activate = net.silu if activation == "silu" else net.gelu
    gate = activate(net.linear(x, f"{at}gate", shape, bias=bias))
    if bias:
        y, scales = net.linear(x, f"{at}up", shape, bias=True), ""
    else:  # multiply by the row scales after `down`, where a row has fewer entries
        y = net.products.product(x, f"{at}up.weight", shape, apply_scales=False)
        scales = x.scales
    inside = net.products.operand(net.graph.op("Mul", y, gate), pending_scales=scales)
    return net.linear(inside, f"{at}down", (hidden, inner), bias=down_bias, residual=residual)


def np_gated_mlp(
    weights: Weights,
    x: FloatArray,
    at: str,
    shape: tuple[int, int],
    activate: Callable[[FloatArray], FloatArray],
    *,
    bias: bool,
    down_bias: bool,
) -> FloatArray:
    """The gated MLP on `x`, `(N, H)`; see `emit_gated_mlp`."""
    inner, hidden = shape
    y = layers.np_linear(weights, x, f"{at}up", shape, bias=bias)
    y = y * activate(layers.np_linear(weights, x, f"{at}gate", shape, bias=bias))
    return layers.np_linear(weights, y, f"{at}down", (hidden, inner), bias=down_bias)
