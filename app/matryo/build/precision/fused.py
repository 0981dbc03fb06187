"""Writes whole linear layers as operators of matryo-native: rounding, product, bias, activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import FloatArray, Weights
from matryo.build.emit import NATIVE, GraphBuilder
from matryo.build.precision.panels import GROUP, into_panels, pack
from matryo.build.precision.quantize import Together, quantize_rows
from matryo.core.choices import Precision

Activation = Literal["none", "gelu", "silu_gate", "gelu_gate"]
"""What a linear layer applies at its end. A gate multiplies `up(x)` by the activated `gate(x)`."""

_ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
_GATES: frozenset[Activation] = frozenset(("silu_gate", "gelu_gate"))


@dataclass(frozen=True, slots=True)
class Fused:
    """A linear layer with what comes after its product.

    Attributes:
        weights: names of the weights, each of `shape`. Their results are joined, or, with a gate,
            the first is `up` and the second is `gate`.
        shape: `(out, in)` of each weight.
        biases: names of the biases, `(out,)`, one for each weight; empty for none.
        activation: applied to the result.
        residual: `(N, out)`, added at the end; empty for nothing.
    """

    weights: tuple[str, ...]
    shape: tuple[int, int]
    biases: tuple[str, ...] = ()
    activation: Activation = "none"
    residual: str = ""


class NativeLayers:
    """Writes linear layers as native operators, in fp32 or int8.

    Args:
        graph: the graph under construction.
        weights: the weights, under the architecture's names.
        precision: the precision of every product.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights, precision: Precision) -> None:
        self._graph = graph
        self._weights = weights
        self._precision: Precision = precision
        self._factors: dict[bytes, str] = {}

    def emit(
        self,
        x: str,
        channels: FloatArray | None,
        zero_byte: int,
        layer: Fused,
        *,
        fine: bool,
    ) -> str:
        """A linear layer on `x`; `(N, out)` float32.

        Args:
            x: `(N, in)` float32.
            channels: `(in,)`, the widths that `x` is divided by before it is rounded; None for
                no smoothing.
            zero_byte: the byte that means 0 in `x` rounded to 8 bits.
            layer: what the layer computes.
            fine: in int8, round `x` to 16 bits and not to 8.
        """
        graph, out = self._graph, layer.shape[0]
        gated = layer.activation in _GATES
        weights = [self._weights.read(name, layer.shape) for name in layer.weights]
        columns = np.concatenate([into_panels(weight) for weight in weights])  # (panels, 16, in)
        biases = [into_panels(self._weights.read(name, (out,))) for name in layer.biases]
        bias = np.concatenate(biases) if biases else None  # (panels, 16)
        if gated:  # a panel of up, then the same panel of gate
            order = np.arange(len(columns)).reshape(2, -1).T.reshape(-1)
            columns, bias = columns[order], None if bias is None else bias[order]
        name = layer.weights[0]
        attributes = {
            "columns": out if gated else out * len(weights),
            "activation": _ACTIVATIONS.index(layer.activation),
        }
        shift = "" if bias is None else graph.constant(f"{name}.shift", bias.reshape(-1))
        if self._precision == "fp32":
            packed = graph.tensor(f"{name}.packed", *pack(columns, 1))
            call = ["Linear", x, packed, "", "", shift, "", layer.residual]
        else:
            factors = ""
            if channels is not None:
                columns = columns * channels
                factors = self._reciprocals(channels)
            call = ["QuantizedLinear", x, *self._round(name, columns, fine=fine)]
            call += [shift, factors, layer.residual]
            attributes |= {"fine": int(fine), "zero_point": zero_byte}
        while not call[-1]:  # an operator's last inputs may be left out
            call.pop()
        return graph.op(*call, domain=NATIVE, **attributes)

    def _round(self, name: str, columns: FloatArray, *, fine: bool) -> tuple[str, str, str]:
        """Names of rounded weights, of their scales, and of their sums if `fine` is False.

        Args:
            name: name of the weight.
            columns: the weights in panels, `(panels, 16, in)`.
            fine: see `emit`. One scale of a column then serves the whole input, and else each
                `GROUP` entries of the input have their own.
        """
        into = columns.shape[-1]
        width = into if fine else GROUP
        together: Together = "one" if fine else "four"
        levels = np.empty(columns.shape, np.int8)
        scales, sums = list[FloatArray](), list[NDArray[np.int32]]()
        for start in range(0, into, width):
            group = columns[..., start : start + width]
            rounded, scale = quantize_rows(group.reshape(-1, group.shape[-1]), together)
            levels[..., start : start + width] = rounded.reshape(group.shape)
            scales.append(scale)
            sums.append(rounded.sum(-1, dtype=np.int32))
        depth, even = (2, 1) if fine else (4, 2)
        return (
            self._graph.tensor(f"{name}.packed", *pack(levels, depth, even)),
            self._graph.constant(f"{name}.scales", np.stack(scales)),
            "" if fine else self._graph.constant(f"{name}.sums", np.stack(sums)),
        )

    def _reciprocals(self, channels: FloatArray) -> str:
        """The factors that divide by the widths of the channels, as an initializer; `(in,)`."""
        key = channels.tobytes()
        if key not in self._factors:
            name = f"channels.{len(self._factors)}"
            self._factors[key] = self._graph.constant(name, 1 / channels)
        return self._factors[key]
