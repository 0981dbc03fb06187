"""Writes an ONNX graph node by node, and large tensors to its data file at once.

No large tensor stays in memory after its call, so a build needs the memory of one tensor and not
of the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from matryo.build.checkpoint import FloatArray
from matryo.build.limits import INLINE_BYTES

ByteArray = NDArray[np.uint8] | NDArray[np.int8]

OPSET = 18
IR_VERSION = 10
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"""

# ORT maps external data, and a mapping begins at a page (ONNX, docs/ExternalData.md).
_ALIGN_BYTES = 4096

NATIVE = "matryo.native"
"""Domain of the operators of the package matryo-native."""


class GraphBuilder:
    """A graph under construction; a context manager that closes the data file.

    Args:
        graph_path: the file that `save` writes.
        data_path: the file of large tensors, in the same folder.
        native: whether the graph may use the operators of matryo-native.

    Attributes:
        native: likewise.
    """

    def __init__(self, graph_path: Path, data_path: Path, *, native: bool = False) -> None:
        self.native = native
        self._graph_path = graph_path
        self._data_name = data_path.name
        self._data = data_path.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._n_values = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.close()

    def input(self, name: str, elem_type: int, shape: tuple[str | int, ...]) -> str:
        """Declare an input of the graph; returns `name`."""
        self._inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, value: str, shape: tuple[str | int, ...]) -> None:
        """Declare `value`, float32, an output of the graph with the name `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name.

        An empty string in `inputs` omits an optional input.
        """
        return self.ops(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, n_outputs: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with `n_outputs` outputs; returns their names."""
        name = self._fresh(op_type)
        values = [name] if n_outputs == 1 else [f"{name}_{i}" for i in range(n_outputs)]
        node = helper.make_node(
            op_type, list(inputs), values, name=name, domain=domain, **attributes
        )
        self._nodes.append(node)
        return values

    def when(self, condition: str, then: Callable[[], str], other: Callable[[], str]) -> str:
        """Add an If, which runs only one of two branches; returns the output's name.

        Args:
            condition: boolean, a scalar or `(1,)`.
            then: adds the nodes of the branch for True, and returns the name of its float32
                result.
            other: likewise, for False.
        """
        value = self._fresh("If")
        branches = {
            "then_branch": self._branch(f"{value}_then", then),
            "else_branch": self._branch(f"{value}_else", other),
        }
        node = helper.make_node("If", [condition], [value], name=value, **cast("Any", branches))
        self._nodes.append(node)
        return value

    def _branch(self, name: str, add: Callable[[], str]) -> onnx.GraphProto:
        outer, self._nodes = self._nodes, []
        try:
            # A branch may not return a value of the outer graph, so Identity copies the result.
            result = self.op("Identity", add())
            info = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
            return helper.make_graph(self._nodes, name, [], [info])
        finally:
            self._nodes = outer

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an array as an initializer; returns `name`. Large float32 go to the data file."""
        if array.nbytes > INLINE_BYTES and array.dtype == np.float32:
            return self.tensor(name, array.shape, [array])
        self._initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def tensor(
        self, name: str, shape: tuple[int, ...], pieces: Iterable[FloatArray | ByteArray]
    ) -> str:
        """Write a tensor to the data file, and add it as an initializer; returns `name`.

        Args:
            name: name of the initializer.
            shape: shape of the tensor.
            pieces: the tensor, float32, uint8 or int8, in pieces of one or more rows. Each piece
                is written before the next one is asked for.
        """
        self._data.write(bytes(-self._data.tell() % _ALIGN_BYTES))
        offset = self._data.tell()
        dtype = np.dtype(np.float32)
        for piece in pieces:
            dtype = piece.dtype
            self._data.write(np.ascontiguousarray(piece, dtype.newbyteorder("<")).data)
        length = self._data.tell() - offset
        assert dtype in (np.float32, np.uint8, np.int8), f"{name}: {dtype}"
        assert length == dtype.itemsize * math.prod(shape), f"{name}: {length} bytes for {shape}"
        proto = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        location = {"location": self._data_name, "offset": offset, "length": length}
        for key, value in location.items():
            proto.external_data.add(key=key, value=str(value))
        self._initializers.append(proto)
        return name

    def save(self, name: str) -> None:
        """Write the graph, named `name`. No node or tensor may be added afterwards."""
        self._data.flush()
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._initializers
        )
        domains = (("", OPSET), (CONTRIB, 1), *(((NATIVE, 1),) if self.native else ()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*domain) for domain in domains],
            ir_version=IR_VERSION,
            producer_name="matryo",
        )
        self._graph_path.write_bytes(model.SerializeToString())

    def _fresh(self, op_type: str) -> str:
        self._n_values += 1
        return f"{op_type}_{self._n_values}"
