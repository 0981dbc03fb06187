"""A ready ONNX graph as a checkpoint: taken over as it is, once it has shown that it is safe.

Nothing of it is rewritten. What is looked at: that it is ONNX, that it takes and gives what
we can feed and use, and that its data files lie beside it and are as large as it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import onnx

from matryo.build.limits import ONNX_MAX_BYTES
from matryo.catalog.output import Output
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing
from matryo.engine.onnx.interface import (
    HIDDEN_STATES,
    POSITION_IDS,
    VECTORS,
    Port,
    plan_graph,
)


@dataclass(frozen=True, slots=True)
class ReadyGraph:
    """An ONNX file and the data files it names.

    Attributes:
        path: the graph.
        data: its data files, all in the same folder.
        n_rows: rows of the word table; None if that was not found.
        n_positions: rows of the smallest table of positions; None if none was found.
        n_tokens: the only number of tokens that the graph runs; None if it runs any number.
        takes_positions: whether the graph takes each token's position as an input.
    """

    path: Path
    data: tuple[Path, ...]
    n_rows: int | None = field(default=None, compare=False)
    n_positions: int | None = field(default=None, compare=False)
    n_tokens: int | None = field(default=None, compare=False)
    takes_positions: bool = field(default=False, compare=False)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in (self.path, *self.data))


def read_ready_graph(path: Path, output: Output | None = None) -> ReadyGraph:
    """Look at an ONNX file.

    Args:
        path: the file.
        output: the manifest's output; None reads the hidden states under their usual names.

    Raises:
        CheckpointMismatch: it is not ONNX, is cut off, names data elsewhere, has inputs or
            outputs that cannot be used, or quantises activations by the range of a whole batch.
    """
    n_bytes = path.stat().st_size
    if n_bytes > ONNX_MAX_BYTES:
        raise CheckpointMismatch(f"{path} has {n_bytes:,} bytes; ONNX allows {ONNX_MAX_BYTES:,}")
    with refusing(partial(_damaged, path)):
        model = cast("Any", onnx).load(str(path), load_external_data=False)
        for nodes in (model.graph.node, *(function.node for function in model.functions)):
            _check_operators(path, nodes)
        return _read(path, model.graph, output)


def gives_vectors_only(path: Path) -> bool:
    """Whether a graph gives a vector of each text under a usual name, and no state of each token.

    Raises:
        CheckpointMismatch: the file is not ONNX.
    """
    with refusing(partial(_damaged, path)):
        graph = cast("Any", onnx).load(str(path), load_external_data=False).graph
        names = {output.name for output in graph.output}
    return not names & set(HIDDEN_STATES) and bool(names & set(VECTORS))


def _damaged(path: Path, reason: str) -> CheckpointMismatch:
    return CheckpointMismatch(f"{path} is not a whole ONNX file: {reason}. Fetch it again.")


def _check_operators(path: Path, nodes: Iterable[Any]) -> None:
    """Raise CheckpointMismatch if an operator finds the range of its input while it runs.

    The input holds the tokens of all texts of a batch. `MatMulInteger` and `ConvInteger` are fed
    by such an operator, or by constants.
    """
    for node in nodes:
        if str(node.op_type).startswith("DynamicQuantize"):
            raise CheckpointMismatch(
                f"{path} is a dynamically quantised graph (it has {node.op_type}): a text's vector "
                "would depend on its batch. Give the model's float graph, or build int8 from its "
                "safetensors."
            )
        for inner in _inner_graphs(node):
            _check_operators(path, inner.node)


def _inner_graphs(node: Any) -> Iterator[Any]:  # noqa: ANN401
    """The branches and loop bodies of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _ports(values: Iterable[Any]) -> list[Port]:
    """Inputs or outputs as the file declares them."""
    ports: list[Port] = []
    for value in values:
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        ports.append(
            Port(
                value.name,
                onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
                tuple(dims) if tensor.HasField("shape") else None,
            )
        )
    return ports


def _read(path: Path, graph: Any, output: Output | None) -> ReadyGraph:  # noqa: ANN401
    """What a graph names and needs; see `read_ready_graph`."""
    weights = {tensor.name for tensor in graph.initializer}  # old exports list them as inputs
    inputs = _ports(value for value in graph.input if value.name not in weights)
    outputs = _ports(graph.output)
    _check_text(path, *(port.name for port in (*inputs, *outputs)))
    try:
        plan = plan_graph(inputs, outputs, output)
    except ValueError as exc:
        raise CheckpointMismatch(f"{path} is not a text encoder we can run: {exc}") from exc
    sizes: dict[Path, int] = {}
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            _check_text(path, *facts, *facts.values())
            file, end = _data_file(path, tensor.name, facts)
            sizes[file] = max(sizes.get(file, 0), end)
    for file, end in sizes.items():
        found = file.stat().st_size
        if found < end:
            raise CheckpointMismatch(
                f"{file} has {found:,} bytes, but {path.name} needs {end:,}: it is cut off"
            )
    n_rows, n_positions = _table_rows(graph)
    return ReadyGraph(
        path,
        tuple(sorted(sizes)),
        n_rows,
        n_positions,
        plan.n_tokens,
        takes_positions=POSITION_IDS in plan.dtypes,
    )


def _check_text(path: Path, *strings: str | bytes) -> None:
    """Protobuf hands strings that are not UTF-8 out as bytes."""
    if odd := [string for string in strings if isinstance(string, bytes)]:
        raise CheckpointMismatch(f"{path} is not a whole ONNX file: {odd[0]!r} is not UTF-8")


def _tensors(graph: Any) -> Iterator[Any]:  # noqa: ANN401
    """Every stored tensor, those in branches and constants too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in _inner_graphs(node):
            yield from _tensors(inner)


# Operators that hand ids, or rows of a table, on as they are.
_SAME_IDS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Clip"})
_SAME_ROWS = frozenset({"Cast", "Identity", "DequantizeLinear"})
# Operators that look up rows: index of the ids among their inputs, and of the table.
_LOOKUPS = {
    "Gather": (1, 0),
    "GatherBlockQuantized": (1, 0),
    "EmbedLayerNormalization": (0, 2),
    "QEmbedLayerNormalization": (0, 2),
}


# A table with fewer rows is one of token types.
_MIN_POSITIONS = 16


def _table_rows(graph: Any) -> tuple[int | None, int | None]:  # noqa: ANN401
    """Rows of the tables that tokens and positions are looked up in; None for one not seen.

    A table of positions is as wide as that of the words, and no input of the graph is its index.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made_of: dict[str, str] = {}
    ids, types = {"input_ids"}, {"token_type_ids"}
    words, others = list[tuple[int, ...]](), list[tuple[int, ...]]()
    for node in graph.node:
        inputs = cast("list[str]", list(node.input))
        outputs = cast("list[str]", list(node.output))
        if node.op_type == "Constant" and outputs:
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[outputs[0]] = tuple(attribute.t.dims)
        if not inputs or not outputs:
            continue
        if node.op_type in _SAME_ROWS:
            made_of[outputs[0]] = made_of.get(inputs[0], inputs[0])
        for known in (ids, types):
            if node.op_type in _SAME_IDS and inputs[0] in known:
                known.add(outputs[0])
        of_ids, of_table = _LOOKUPS.get(node.op_type, (0, len(inputs)))
        if max(of_ids, of_table) < len(inputs) and inputs[of_ids] not in types:
            shape = shapes.get(made_of.get(inputs[of_table], inputs[of_table]), ())
            (words if inputs[of_ids] in ids else others).append(shape)
    widths = {shape[1:] for shape in words if len(shape) > 1}
    positions = [shape[0] for shape in others if len(shape) > 1 and shape[1:] in widths]
    return (
        min((shape[0] for shape in words if shape and shape[0] > 0), default=None),
        min((rows for rows in positions if rows > _MIN_POSITIONS), default=None),
    )


def _data_file(path: Path, name: str, facts: dict[str, str]) -> tuple[Path, int]:
    """The file a tensor lies in, and where it ends there."""
    location = facts.get("location", "")
    file = path.parent / location
    if path.is_symlink() and not file.exists():
        file = path.resolve().parent / location  # the link was made to the graph alone
    # A plain name in the same folder, and no link out of it: a graph from elsewhere must not
    # have us copy /etc/passwd into the store. Hub caches link both files into one folder.
    homes = (path.parent.resolve(), path.resolve().parent)
    if not location or Path(location).name != location or file.resolve().parent not in homes:
        raise CheckpointMismatch(
            f"{path}: tensor '{name}' is said to lie in {location!r}; data files must lie beside "
            "the graph, under a plain name"
        )
    if not file.is_file():
        raise CheckpointMismatch(f"{path} needs the data file {file}, which is not there")
    try:
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", 0))
    except ValueError as exc:
        raise CheckpointMismatch(f"{path}: tensor '{name}' has no numbers for a place") from exc
    if offset < 0 or length < 0:
        raise CheckpointMismatch(f"{path}: tensor '{name}' lies at {offset}, of {length} bytes")
    return file, offset + length
