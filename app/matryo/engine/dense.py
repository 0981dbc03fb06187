"""The dense layers of the output steps: their file in an artefact, and their arithmetic.

A layer computes one text at a time, so that no bit of a text's vector depends on a batch. The
products are numpy's own loops and not BLAS, whose order of summation depends on shapes and threads.

Source: sentence-transformers, `Dense`: a linear layer and an activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from matryo.catalog.output import Activation, DenseSpec

FloatArray = NDArray[np.float32]
_Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer and its activation.

    Attributes:
        weight: `(out, in)` float32.
        bias: `(out,)` float32; None if the layer has none.
        activation: function of each component.
    """

    weight: FloatArray
    bias: FloatArray | None
    activation: Activation


def save_dense(layers: Sequence[DenseLayer], path: Path) -> None:
    """Write the values of each layer, weight before bias, as one float32 array."""
    parts = [
        part.ravel() for layer in layers for part in (layer.weight, layer.bias) if part is not None
    ]
    np.save(path, np.concatenate(parts, dtype=np.float32))


def load_dense(path: Path, specs: Sequence[DenseSpec]) -> tuple[DenseLayer, ...]:
    """The layers in a file that `save_dense` wrote; empty without `specs`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds other numbers of values than `specs` describes.
    """
    if not specs:
        return ()
    values = cast("FloatArray", np.load(path))
    counts = [(spec.out_features * spec.in_features, spec.out_features) for spec in specs]
    sizes = [
        size
        for spec, (n_weights, n_bias) in zip(specs, counts, strict=True)
        for size in (n_weights, n_bias if spec.bias else 0)
    ]
    if values.dtype != np.float32 or values.shape != (sum(sizes),):
        raise ValueError(
            f"{path} has {values.dtype} values of the shape {values.shape}, but model.toml "
            f"describes {sum(sizes)} float32 values"
        )
    pieces = iter(np.split(values, np.cumsum(sizes)[:-1]))
    return tuple(
        DenseLayer(
            next(pieces).reshape(spec.out_features, spec.in_features),
            bias if (bias := next(pieces)).size else None,
            spec.activation,
        )
        for spec in specs
    )


def dense(x: FloatArray, layer: DenseLayer) -> FloatArray:
    """Each row of `x` through the layer; `(B, in)` to `(B, out)` float32."""
    return np.stack([_dense_row(row, layer) for row in x])


def _dense_row(row: FloatArray, layer: DenseLayer) -> FloatArray:
    """One text's state `(in,)` through the layer; `(out,)` float32."""
    y = cast("FloatArray", np.einsum("oi,i->o", layer.weight, row))
    if layer.bias is not None:
        y = y + layer.bias
    # In float64, because numpy's float32 functions differ in the last bits from CPU to CPU.
    with np.errstate(over="ignore"):
        return _ACTIVATIONS[layer.activation](y.astype(np.float64)).astype(np.float32)


def _identity(x: _Float64Array) -> _Float64Array:
    return x


def _relu(x: _Float64Array) -> _Float64Array:
    return np.maximum(x, 0.0)


def _gelu(x: _Float64Array) -> _Float64Array:
    """Exact GELU, `x/2 (1 + erf(x/√2))`, as PyTorch's `GELU` computes it by default."""
    erf = cast("NDArray[Any]", np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)))
    return x * (1 + erf.astype(np.float64)) / 2


def _sigmoid(x: _Float64Array) -> _Float64Array:
    return 1 / (1 + np.exp(-x))


def _silu(x: _Float64Array) -> _Float64Array:
    return x * _sigmoid(x)


_ACTIVATIONS: Mapping[Activation, Callable[[_Float64Array], _Float64Array]] = {
    "identity": _identity,
    "tanh": np.tanh,
    "relu": _relu,
    "gelu": _gelu,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
