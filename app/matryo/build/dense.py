"""The dense layers of a checkpoint: where their files are, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint
from matryo.catalog.output import DenseSpec
from matryo.core.errors import CheckpointMismatch
from matryo.engine.dense import DenseLayer
from matryo.store.unread import explain_folder

_WEIGHT, _BIAS = "linear.weight", "linear.bias"


def find_dense(spec: DenseSpec, checkpoint: Path, weights: Path) -> Path:
    """The file of a dense layer.

    The file is in the checkpoint's folder, beside the weights or beside the file that the weights
    are a link to. The folder of an ONNX graph, `onnx/`, often lies below the checkpoint's folder.

    Args:
        spec: the layer.
        checkpoint: the folder or file that the user gave.
        weights: file of the weights.

    Raises:
        CheckpointMismatch: there is no such file.
    """
    folders = [checkpoint] if checkpoint.is_dir() else []
    folders += [weights.parent, weights.resolve().parent]
    if weights.suffix.lower() == ".onnx":
        folders += [weights.parent.parent]
    for folder in folders:
        if (folder / spec.file).is_file():
            return folder / spec.file
    path = folders[0] / spec.file
    raise CheckpointMismatch(
        f"{path}: no such file, but model.toml names it in output.dense. "
        f"{explain_folder(path.parent)}".rstrip(". ")
        + "."
    )


def read_dense(specs: Sequence[DenseSpec], paths: Sequence[Path]) -> list[DenseLayer]:
    """The layers in these files.

    Args:
        specs: the layers as the manifest describes them.
        paths: the file of each.

    Raises:
        CheckpointMismatch: a file is not safetensors, or holds something else than the layer.
    """
    return [_read(spec, path) for spec, path in zip(specs, paths, strict=True)]


def _read(spec: DenseSpec, path: Path) -> DenseLayer:
    expected: dict[str, tuple[int, ...]] = {_WEIGHT: (spec.out_features, spec.in_features)}
    if spec.bias:
        expected[_BIAS] = (spec.out_features,)
    checkpoint = SafetensorsCheckpoint(path)
    try:
        found = {name: checkpoint.shape(name) for name in checkpoint.names}
        if found != expected:
            raise CheckpointMismatch(
                f"{path} has the tensors {_shown(found)}, but output.dense in model.toml "
                f"describes {_shown(expected)}. Correct in_features, out_features and bias there, "
                "or give the file of that layer."
            )
        return DenseLayer(
            checkpoint.read(_WEIGHT),
            checkpoint.read(_BIAS) if spec.bias else None,
            spec.activation,
        )
    finally:
        checkpoint.close()


def _shown(shapes: dict[str, tuple[int, ...]], most: int = 4) -> str:
    """Names and shapes of tensors, for a message."""
    named = [f"{name} {shape}" for name, shape in sorted(shapes.items())]
    return ", ".join([*named[:most], *(["..."] if len(named) > most else [])]) or "none"
