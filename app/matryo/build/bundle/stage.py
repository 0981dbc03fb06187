"""Copies an artefact into the store of a bundle, with its large tensors named in the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from matryo.catalog.pins import pins_path
from matryo.core.errors import BuildFailed
from matryo.store.artifact import CURRENT_FILE, GRAPH_FILE, Artifact, write_record
from matryo.store.bundle import ALIGN_BYTES, LOCATION
from matryo.store.encodings import TABLE_FILE, find_table
from matryo.store.files import copy_file, make_folder, sha256_file, write_atomically
from matryo.store.layout import Store
from matryo.store.records import FileRecord


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of an artefact's large tensors, in the order of the bundle.

    Attributes:
        files: the files.
        offsets: where each begins, in the part of the weights, by file name.
    """

    files: tuple[Path, ...]
    offsets: dict[str, int]


def find_weights(artifact: Artifact) -> Weights:
    """The files of an artefact's large tensors; none where the graph holds every tensor.

    Raises:
        BuildFailed: the graph cannot be read.
    """
    names = {_location(tensor) for tensor in _external(_load(artifact.graph))}
    files = tuple(artifact.folder / name for name in sorted(names))
    offsets: dict[str, int] = {}
    at = 0
    for file in files:
        offsets[file.name] = at
        at += -(-file.stat().st_size // ALIGN_BYTES) * ALIGN_BYTES
    return Weights(files, offsets)


def stage_artifact(artifact: Artifact, weights: Weights, offset: int, store: Store) -> None:
    """Copy all of an artefact but its weights into a bundle's store.

    Args:
        artifact: the artefact.
        weights: its large tensors.
        offset: of the part of the weights in the bundle.
        store: the bundle's store.

    Raises:
        BuildFailed: the graph cannot be read.
    """
    record = artifact.record
    folder = store.artifacts(record.model_id, record.precision) / record.key
    make_folder(folder)
    model = _load(artifact.graph)
    for tensor in _external(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        begin = int(entries.get("offset", "0")) + offset + weights.offsets[entries["location"]]
        entries |= {"location": LOCATION, "offset": str(begin)}
        entries.pop("checksum", None)
        del tensor.external_data[:]
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString())
    names = record.files.keys() - {GRAPH_FILE, *weights.offsets}
    for name in names:
        copy_file(artifact.folder / name, folder / name)
    files = {
        name: FileRecord((folder / name).stat().st_size, sha256_file(folder / name))
        for name in sorted({GRAPH_FILE, *names})
    }
    write_record(folder, replace(record, files=files))
    current = {"key": record.key, "origin": None if record.verified else record.checkpoint_path}
    write_atomically(folder.parent / CURRENT_FILE, json.dumps(current))


def stage_model(model: Path, models: Path) -> None:
    """Copy a model's manifest and golden values into a bundle's folder of models.

    Neither the record of what a model was derived from, which no bundle has, nor a checkpoint in
    the same folder is copied.
    """
    for name in ("model.toml", "golden.json"):
        if (model / name).is_file():
            copy_file(model / name, models / model.name / name)


def stage_extras(model_id: str, source: Store, target: Store) -> None:
    """Copy what else a server reads of its store: pins of the model, and cl100k_base."""
    pins = pins_path(source.home, model_id)
    if pins.is_file():
        copy_file(pins, pins_path(target.home, model_id))
    if table := find_table(source):
        copy_file(table, target.encodings / TABLE_FILE)


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file in a folder, by path; links are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, sha256_file(path))
        for path in files
    }


def _load(graph: Path) -> onnx.ModelProto:
    try:
        return onnx.load(graph, load_external_data=False)
    except (DecodeError, OSError) as exc:
        raise BuildFailed(f"{graph} cannot be read: {exc}. Build the model again.") from exc


def _location(tensor: TensorProto) -> str:
    return next(entry.value for entry in tensor.external_data if entry.key == "location")


def _external(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """The tensors of a graph, its branches and its functions whose bytes are in another file."""
    graphs, nodes = [model.graph], [node for f in model.functions for node in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from filter(_is_external, graph.initializer)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield from filter(_is_external, [attribute.t, *attribute.tensors])
            graphs += [attribute.g, *attribute.graphs]  # an attribute without one has an empty one


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL
