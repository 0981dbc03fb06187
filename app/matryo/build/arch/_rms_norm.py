"""Root mean square norm, as ONNX nodes and as a numpy function.

Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
"""

from __future__ import annotations

import numpy as np

from matryo.build.arch._layers import Layers
from matryo.build.checkpoint import FloatArray, Weights


def emit_rms_norm(net: Layers, x: str, name: str, *, width: int, eps: float) -> str:
    """`x` divided by the root mean square of its last axis, with scale and without shift.

    Args:
        net: writes the layers of the architecture.
        x: `(..., width)`.
        name: the norm's name; the tensor is `{name}.weight`.
        width: length of the last axis.
        eps: added to the mean square.
    """
    scale = net.vector(f"{name}.weight", width)
    # ORT has this operator in ONNX's own domain, though ONNX does not define it.
    return net.graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps)


def np_rms_norm(weights: Weights, x: FloatArray, name: str, eps: float) -> FloatArray:
    """RMS norm over the last axis, with scale; see `emit_rms_norm`."""
    scale = weights.read(f"{name}.weight", (x.shape[-1],))
    mean_square = np.square(x).mean(-1, keepdims=True)
    return x / np.sqrt(mean_square + np.float32(eps)) * scale
