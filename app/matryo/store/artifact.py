"""A built model on disk, and finding the one to serve: all that the engine sees of the graph.

An artefact is a folder:

    model.onnx         the graph; small tensors inside
    model.onnx.data    large tensors, each from a page boundary on, mapped by ONNX Runtime
                       (a graph that came ready has data files of its own names, or none)
    tokenizer.json
    artifact.json      what it was made of, and size and sha256 of the other files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import ArtifactDamaged, ArtifactMissing
from matryo.store.files import sha256_file
from matryo.store.layout import Store

BUILDER_VERSION = 6
"""Raised with every change of what a build writes; older artefacts are then built anew."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
TOKENIZER_FILE = "tokenizer.json"
RECORD_FILE = "artifact.json"
CURRENT_FILE = "current"
VERIFIED_FILE = "verified.json"
"""Beside a record once `matryo verify` has passed; says when, and by which version."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hash of one file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """The content of `artifact.json`.

    Attributes:
        key: 16 hex digits of everything below that shapes a vector.
        checkpoint_sha256: hash of the weights the graph was built from.
        tokenizer_sha256: hash of the tokenizer beside them.
        verified: whether both are the manifest's.
        checkpoint_path: where they lay, to build again after an upgrade.
        output_key: `Manifest.output_key` at build time.
        lacks: tensors that the model has and the checkpoint did not.
        max_abs_error: graph against the plain numpy forward, on hidden states.
        min_cosine: likewise, the least cosine of a built-in text.
    """

    model_id: str
    precision: Precision
    key: str
    builder_version: int
    output_key: str
    checkpoint_sha256: str
    tokenizer_sha256: str
    verified: bool
    checkpoint_path: str
    lacks: tuple[str, ...]
    max_abs_error: float
    min_cosine: float
    files: dict[str, FileRecord]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artefact on disk."""

    folder: Path
    record: ArtifactRecord

    @property
    def graph(self) -> Path:
        """Path of `model.onnx`."""
        return self.folder / GRAPH_FILE

    @property
    def tokenizer(self) -> Path:
        """Path of `tokenizer.json`."""
        return self.folder / TOKENIZER_FILE

    @property
    def passed_verify(self) -> bool:
        """Whether `matryo verify` has passed on this very build."""
        return (self.folder / VERIFIED_FILE).is_file()

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, `artifact.json` not counted."""
        return sum(file.bytes for file in self.record.files.values())

    def check_files(self, *, skip: Collection[str] = ()) -> None:
        """Compare every file but those of `skip` with its record, by size and sha256.

        Raises:
            ArtifactDamaged: a file is gone, shorter, longer or different.
        """
        for name, expected in self.record.files.items():
            if name in skip:
                continue
            path = self.folder / name
            n_bytes = path.stat().st_size if path.is_file() else -1
            if n_bytes != expected.bytes:
                found = "missing" if n_bytes < 0 else f"{n_bytes:,} bytes"
                raise _damaged(self, f"{path} is {found}, was built with {expected.bytes:,} bytes")
            if (found := sha256_file(path)) != expected.sha256:
                raise _damaged(self, f"{path} has sha256 {found}, was built as {expected.sha256}")


def artifact_key(
    manifest: Manifest,
    precision: Precision,
    checkpoint_sha256: str,
    tokenizer_sha256: str,
    lacks: tuple[str, ...],
) -> str:
    """16 hex digits over all that shapes a vector: manifest, weights, tokenizer, builder."""
    parts = [
        manifest.id,
        precision,
        manifest.output_key,
        checkpoint_sha256,
        tokenizer_sha256,
        str(BUILDER_VERSION),
        *lacks,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_record(folder: Path, record: ArtifactRecord) -> None:
    """Write `artifact.json`; last of all files of a build."""
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")


def find_artifact(store: Store, manifest: Manifest, precision: Precision) -> Artifact:
    """The artefact to serve: the one last built, if it fits this manifest and builder.

    Raises:
        ArtifactMissing: none was built, or the one there is of another manifest or builder.
        ArtifactDamaged: `artifact.json` cannot be read.
    """
    command = f"matryo build {manifest.id} --precision {precision}"
    folder = _current_folder(store, manifest.id, precision)
    if folder is None:
        raise ArtifactMissing(
            f"{manifest.id} is not built in {precision} in {store.home}; run: {command}"
        )
    data = _read_json(folder)
    if (data.get("builder_version"), data.get("output_key")) != (
        BUILDER_VERSION,
        manifest.output_key,
    ):
        raise ArtifactMissing(
            f"{folder} was built by another version or for another model.toml; run: {command}"
        )
    return read_artifact(folder)


def unverified_origin(store: Store, model_id: str, precision: Precision) -> Path | None:
    """The checkpoint that the artefact last built came from, if it was not the manifest's.

    Read from any version's record, so that an upgrade never puts the published weights in
    the place of somebody's own.
    """
    folder = _current_folder(store, model_id, precision)
    data = _read_json(folder) if folder else {}
    if not data or data.get("verified", True):
        return None
    return Path(str(data["checkpoint_path"]))


def _current_folder(store: Store, model_id: str, precision: Precision) -> Path | None:
    folder = store.artifacts(model_id, precision)
    try:
        key = (folder / CURRENT_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return folder / key if key and (folder / key / RECORD_FILE).is_file() else None


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError("not an object")  # noqa: TRY301
    except (OSError, ValueError, TypeError) as exc:
        msg = f"{path} cannot be read ({exc}); remove {folder} and build again"
        raise ArtifactDamaged(msg) from exc
    return cast("dict[str, Any]", data)


def read_artifact(folder: Path) -> Artifact:
    """Read `folder/artifact.json`; the files beside it are not looked at.

    Raises:
        ArtifactDamaged: it is not a record.
    """
    data = _read_json(folder)
    try:
        files = {name: FileRecord(**file) for name, file in data.pop("files").items()}
        lacks = tuple(data.pop("lacks"))
        return Artifact(folder, ArtifactRecord(**data, lacks=lacks, files=files))
    except (TypeError, KeyError, AttributeError) as exc:
        msg = f"{folder / RECORD_FILE} is no record ({exc}); remove {folder} and build again"
        raise ArtifactDamaged(msg) from exc


def _damaged(artifact: Artifact, what: str) -> ArtifactDamaged:
    record = artifact.record
    return ArtifactDamaged(
        f"{what}. Build it again: matryo build {record.model_id} --precision {record.precision}"
    )
