"""Runs single operators of matryo-native, each as a graph of one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

import matryo_native as native
from matryo.build.emit import NATIVE
from matryo.build.precision.panels import GROUP, LANES, into_panels, pack
from matryo.build.precision.quantize import quantize_rows

Floats = NDArray[np.float32]
Numbers = Literal["bytes", "words", "floats"]
ACTIVATIONS = ("none", "gelu", "silu_gate", "gelu_gate")


@lru_cache(maxsize=256)
def session(
    library: Path,
    op: str,
    types: tuple[str, ...],
    attributes: tuple[tuple[str, float], ...],
    threads: int,
) -> onnxruntime.InferenceSession:
    """A session of one node; an input without a type is left out.

    Args:
        library: the shared library.
        op: name of the operator.
        types: numpy's name of each input's type, or "".
        attributes: of the node.
        threads: that the session uses.
    """
    names = [f"x{i}" if kind else "" for i, kind in enumerate(types)]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None)
        for name, kind in zip(names, types, strict=True)
        if kind
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = helper.make_node(op, names, ["y"], domain=NATIVE)
    node.attribute.extend(helper.make_attribute(*pair) for pair in attributes)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(NATIVE, 1)]
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # a test that provokes an error reads the exception
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    op: str,
    inputs: Sequence[NDArray[Any] | None],
    attributes: Mapping[str, float],
    *,
    threads: int = 1,
    library: Path | None = None,
) -> Floats:
    """The result of one operator. An input of None is left out.

    Args:
        op: name of the operator.
        inputs: of the operator.
        attributes: of the operator.
        threads: that the session uses.
        library: the shared library; None for the one that is installed.
    """
    types = tuple("" if x is None else x.dtype.name for x in inputs)
    path = library or native.library()
    made = session(path, op, types, tuple(sorted(attributes.items())), threads)
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    return cast("list[Floats]", made.run(["y"], feeds))[0]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer, with its weights as the operators read them.

    Attributes:
        numbers: what is multiplied.
        activation: one of ACTIVATIONS.
        columns: width of the result.
        panels: the weights before packing, `(panels, 16, k)`, int8 or float32.
        scales: `(groups, panels * 16)`, empty for floats.
        sums: likewise, int32.
        bias: `(panels * 16,)`, or None.
        channels: `(k,)`, or None.
        zero_point: the byte that means 0.
    """

    numbers: Numbers
    activation: str
    columns: int
    panels: NDArray[Any]
    scales: Floats
    sums: NDArray[np.int32]
    bias: Floats | None
    channels: Floats | None
    zero_point: int

    @property
    def gated(self) -> bool:
        """Whether the weights are panels of `up` and `gate` in turn."""
        return self.activation.endswith("gate")

    def call(self, x: Floats, residual: Floats | None = None) -> tuple[str, Any, dict[str, int]]:
        """The operator's name, inputs and attributes, for `run`."""
        depth, even = {"bytes": (4, 2), "words": (2, 1), "floats": (1, 1)}[self.numbers]
        packed = np.concatenate(list(pack(self.panels, depth, even)[1]))
        attributes = {"columns": self.columns, "activation": ACTIVATIONS.index(self.activation)}
        if self.numbers == "floats":
            return "Linear", (x, packed, None, None, self.bias, None, residual), attributes
        sums = self.sums if self.numbers == "bytes" else None
        inputs = (x, packed, self.scales, sums, self.bias, self.channels, residual)
        attributes |= {"fine": int(self.numbers == "words"), "zero_point": self.zero_point}
        return "QuantizedLinear", inputs, attributes

    def run(
        self,
        x: Floats,
        residual: Floats | None = None,
        *,
        threads: int = 1,
        library: Path | None = None,
    ) -> Floats:
        """The operator's result."""
        op, inputs, attributes = self.call(x, residual)
        return run(op, inputs, attributes, threads=threads, library=library)


def make_layer(
    rng: np.random.Generator,
    numbers: Numbers,
    k: int,
    columns: int,
    *,
    activation: str = "none",
    bias: bool = False,
    channels: bool = False,
    zero_point: int = 128,
    weights: Floats | None = None,
) -> Layer:
    """A layer of random weights, packed and rounded as graphs have them.

    Args:
        rng: source of the weights.
        numbers: what is multiplied.
        k: width of the input.
        columns: width of the result.
        activation: one of ACTIVATIONS.
        bias: whether there is a bias.
        channels: whether the entries of the input have factors.
        zero_point: the byte that means 0.
        weights: `(columns, k)`, or `(2 * columns, k)` with a gate; None for random ones.
    """
    parts = 2 if activation.endswith("gate") else 1
    if weights is None:
        weights = rng.standard_normal((parts * columns, k)).astype(np.float32) / np.float32(k**0.5)
    halves = [into_panels(part) for part in np.split(weights, parts)]
    panels = np.stack(halves, 1).reshape(-1, LANES, k)
    width = {"bytes": GROUP, "words": k, "floats": k}[numbers]
    levels = np.zeros(panels.shape, np.int8)
    scales, sums = list[Floats](), list[NDArray[np.int32]]()
    for start in range(0, k, width) if numbers != "floats" else ():
        group = panels[..., start : start + width].reshape(panels.shape[0] * LANES, -1)
        rounded, scale = quantize_rows(group, "four" if numbers == "bytes" else "one")
        levels[..., start : start + width] = rounded.reshape(len(panels), LANES, -1)
        scales.append(scale)
        sums.append(rounded.sum(-1, dtype=np.int32))
    shift = rng.standard_normal(len(panels) * LANES).astype(np.float32) if bias else None
    return Layer(
        numbers,
        activation,
        columns,
        panels if numbers == "floats" else levels,
        np.array(scales, np.float32),
        np.array(sums, np.int32),
        shift,
        rng.uniform(0.5, 2, k).astype(np.float32) if channels and numbers != "floats" else None,
        zero_point,
    )


def make_rotary(positions: int, size: int) -> tuple[Floats, Floats]:
    """Cosines and sines of each position, each `(positions, size / 2)`."""
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(size // 2) / (size // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def attention(
    qkv: Floats,
    lengths: Sequence[int],
    *,
    num_heads: int,
    floats: bool,
    rotary: tuple[Floats, Floats] | None = None,
    scale: float | None = None,
    threads: int = 1,
    library: Path | None = None,
) -> Floats:
    """The result of `SelfAttention`; the scale is by default that of the heads' width."""
    size = qkv.shape[1] // 3 // num_heads
    inputs = (qkv, np.array(lengths, np.int64), *(rotary or ()))
    attributes = {
        "num_heads": num_heads,
        "floats": int(floats),
        "scale": size**-0.5 if scale is None else float(scale),
    }
    return run("SelfAttention", inputs, attributes, threads=threads, library=library)


def layer_norm(
    x: Floats,
    scale: Floats,
    bias: Floats | None,
    epsilon: float = 1e-5,
    *,
    threads: int = 1,
    library: Path | None = None,
) -> Floats:
    """The result of `LayerNormalization`."""
    inputs, attributes = (x, scale, bias), {"epsilon": epsilon}
    return run("LayerNormalization", inputs, attributes, threads=threads, library=library)
