"""A built model on disk, and finding the one to serve: all that an engine needs of the store.

An artefact is a folder:

    model.onnx         the graph; small tensors inside
    model.onnx.data    large tensors, each from a page boundary on, mapped by ONNX Runtime
                       (a graph that came ready has data files of its own names, or none)
    tokenizer.json
    dense.npy          weights of the output's dense steps, if the model has such steps
    artifact.json      what it was made of, and size and sha256 of the other files

Beside the folders, `current` names the one to serve, and the checkpoint that it came from if
that was not the manifest's. One rename replaces that file, so that no crash parts the two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import ArtifactDamaged, ArtifactMissing
from matryo.core.native import INTERFACE
from matryo.core.untrusted import read_bytes, refusing
from matryo.store.bundle import WEIGHTS, running
from matryo.store.files import find_folder, naming_the_store, sha256_file, write_atomically
from matryo.store.layout import Store
from matryo.store.limits import RECORD_MAX_BYTES
from matryo.store.records import ArtifactRecord, read_artifact_record, read_record, text
from matryo.store.sources import SourceFile, find_change

BUILDER_VERSION = 6
"""Raised with every change of what a build writes; artefacts of older versions are built anew."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
TOKENIZER_FILE = "tokenizer.json"
DENSE_FILE = "dense.npy"
RECORD_FILE = "artifact.json"
CURRENT_FILE = "current"
VERIFIED_FILE = "verified.json"
"""A file beside the record once `matryo verify` has passed: the date and Matryo's version."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artefact on disk.

    Attributes:
        folder: of its files.
        record: what it was made of.
        weights: the bundle that holds the large tensors; None if they are in the folder.
    """

    folder: Path
    record: ArtifactRecord
    weights: Path | None = None

    @property
    def graph(self) -> Path:
        """Path of `model.onnx`."""
        return self.folder / GRAPH_FILE

    @property
    def tokenizer(self) -> Path:
        """Path of `tokenizer.json`."""
        return self.folder / TOKENIZER_FILE

    @property
    def dense(self) -> Path:
        """Path of `dense.npy`; a model without dense steps has no such file."""
        return self.folder / DENSE_FILE

    @property
    def passed_verify(self) -> bool:
        """Whether `matryo verify` has passed on this very build."""
        return (self.folder / VERIFIED_FILE).is_file()

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, `artifact.json` not counted."""
        n_bytes = sum(file.bytes for file in self.record.files.values())
        if self.weights and (bundle := running()):
            n_bytes += sum(part.bytes for part in bundle.index.parts if part.name == WEIGHTS)
        return n_bytes

    def check_files(self, *, skip: Collection[str] = ()) -> None:
        """Compare every file but those of `skip` with its record, by size and sha256.

        Raises:
            ArtifactDamaged: a file is missing, or its size or sha256 is not the recorded one.
        """
        for name, expected in self.record.files.items():
            if name in skip:
                continue
            path = self.folder / name
            try:
                n_bytes = path.stat().st_size if path.is_file() else -1
                if n_bytes != expected.bytes:
                    found = "missing" if n_bytes < 0 else f"{n_bytes:,} bytes"
                    what = f"{path} is {found}, was built with {expected.bytes:,} bytes"
                    raise _damaged(self, what)
                if (found := sha256_file(path)) != expected.sha256:
                    what = f"{path} has sha256 {found}, was built as {expected.sha256}"
                    raise _damaged(self, what)
            except OSError as exc:
                raise _damaged(self, f"{path} cannot be read: {exc.strerror}") from exc


def artifact_key(
    manifest: Manifest,
    precision: Precision,
    checkpoint_sha256: str,
    tokenizer_sha256: str,
    lacks: tuple[str, ...],
    dense_sha256: tuple[str, ...] = (),
    native: int = 0,
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
        *(f"dense {sha256}" for sha256 in dense_sha256),
        *([f"native {native}"] if native else []),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_record(folder: Path, record: ArtifactRecord) -> None:
    """Write `artifact.json`, the last file of a build."""
    write_atomically(folder / RECORD_FILE, json.dumps(asdict(record), indent=1))


def make_current(store: Store, record: ArtifactRecord) -> None:
    """Have the artefact of this record served from now on; call under the lock of its model."""
    folder = store.artifacts(record.model_id, record.precision)
    origin = None if record.verified else record.checkpoint_path
    write_atomically(folder / CURRENT_FILE, json.dumps({"key": record.key, "origin": origin}))


def find_artifact(store: Store, manifest: Manifest, precision: Precision) -> Artifact:
    """The artefact to serve: the one last built, if it fits this manifest and builder.

    An artefact of the manifest's checkpoint fits while the manifest pins the hashes that it was
    built from. An artefact of somebody's own weights fits while their files are as they were, or
    the weights are gone.

    Raises:
        ArtifactMissing: none was built, or the one there is does not fit; says why.
        ArtifactDamaged: `current` or `artifact.json` cannot be read.
        StoreUnwritable: this user may not read the store.
    """
    command = f"matryo build {manifest.id} --precision {precision}"
    with naming_the_store(store.home):
        current = _read_current(store, manifest.id, precision)
        if current is None or not (current.folder / RECORD_FILE).is_file():
            raise ArtifactMissing(
                f"{manifest.id} is not built in {precision} in {store.home}; run: {command}"
            )
        data = _read_json(current.folder / RECORD_FILE)
        found = (data.get("builder_version"), data.get("output_key"))
        known = data.get("native", 0) in (0, INTERFACE)
        if not known or found != (BUILDER_VERSION, manifest.output_key):
            raise ArtifactMissing(
                f"{current.folder} was built by another version or for another model.toml; "
                f"run: {command}"
            )
        artifact = read_artifact(current.folder)
    record = artifact.record
    if record.verified and (reason := _other_pins(manifest, record)):
        raise ArtifactMissing(f"{artifact.folder} {reason}; run: {command}")
    # Where a bundle runs, a file at the checkpoint's path has nothing to do with the bundle.
    is_bundled = artifact.weights is not None
    if not (record.verified or is_bundled) and (reason := find_change(own_sources(record))):
        raise ArtifactMissing(
            f"{reason}; run: {command} --checkpoint {record.checkpoint_path} --unverified"
        )
    return artifact


def _other_pins(manifest: Manifest, record: ArtifactRecord) -> str | None:
    """Which of the hashes of a verified artefact the manifest pins no longer; None if none."""
    if len(record.sources) > 1:  # shards, data files of a graph, or dense layers
        known = manifest.every_sha256
        for source in record.sources:
            if source.sha256 not in known:
                return _other_pin(manifest, source)
        return None
    for name, found in (
        (manifest.weights, record.checkpoint_sha256),
        (TOKENIZER_FILE, record.tokenizer_sha256),
    ):
        pinned = manifest.pinned_sha256(name)
        if pinned and found not in pinned:
            return (
                f"was built from a file with sha256 {found}, but {manifest.id} now pins "
                f"{name} to {pinned[0]}"
            )
    return None


def _other_pin(manifest: Manifest, source: SourceFile) -> str:
    """The sentence on a file whose hash the manifest pins no longer."""
    what = f"was built from a file with sha256 {source.sha256}"
    names = sorted(manifest.files, key=len, reverse=True)
    name = next((name for name in names if source.path.endswith(f"/{name}")), None)
    pinned = manifest.pinned_sha256(name) if name else ()
    if not pinned:
        return f"{what} ({Path(source.path).name}), which {manifest.id} does not pin any more"
    return f"{what}, but {manifest.id} now pins {name} to {pinned[0]}"


def own_sources(record: ArtifactRecord) -> tuple[SourceFile, ...]:
    """The files that an artefact was built from, as far as its record says.

    Records of earlier builds name the checkpoint alone. The tokenizer beside those weights is
    known only for safetensors, which took no other.
    """
    if record.sources:
        return record.sources
    checkpoint = Path(record.checkpoint_path)
    weights = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    sources = [SourceFile(str(weights), record.checkpoint_sha256)]
    tokenizer = weights.parent / TOKENIZER_FILE
    if weights.suffix == ".safetensors" and tokenizer.is_file():
        sources.append(SourceFile(str(tokenizer), record.tokenizer_sha256))
    return tuple(sources)


def unverified_origin(store: Store, model_id: str, precision: Precision) -> Path | None:
    """The checkpoint that the artefact last built came from, if it was not the manifest's.

    Any version's artefact counts, so that an upgrade never replaces somebody's own weights by
    the published ones.

    Raises:
        ArtifactDamaged: the file that says so cannot be read.
        StoreUnwritable: this user may not read the store.
    """
    with naming_the_store(store.home):
        current = _read_current(store, model_id, precision)
    return current.origin if current else None


@dataclass(frozen=True, slots=True)
class _Current:
    """The content of `current`.

    Attributes:
        folder: of the artefact to serve; may not exist.
        origin: the checkpoint of unverified weights; None for the manifest's own.
    """

    folder: Path
    origin: Path | None


def _read_current(store: Store, model_id: str, precision: Precision) -> _Current | None:
    """What `current` says; None if nothing was built."""
    path = store.artifacts(model_id, precision) / CURRENT_FILE
    try:
        content = read_bytes(path, RECORD_MAX_BYTES).decode().strip()
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise _unreadable(path, exc) from exc
    if not content.startswith("{"):  # the key alone, as stores of earlier builds have it
        folder = _folder_of(path, content)
        if not (folder / RECORD_FILE).is_file():
            # The record alone said whose weights these were: nothing may be built in their place.
            raise _unreadable(path, f"the artefact '{content}' that it names is gone")
        data = _read_json(folder / RECORD_FILE)
        with refusing(partial(_unreadable, folder / RECORD_FILE)):
            known = data.get("verified", True)
            return _Current(folder, None if known else Path(text(data["checkpoint_path"])))
    data = _read_json(path)
    with refusing(partial(_unreadable, path)):
        folder = _folder_of(path, text(data["key"]))
        origin = data["origin"]
        return _Current(folder, None if origin is None else Path(text(origin)))


def _folder_of(path: Path, key: str) -> Path:
    """The folder of the artefact that `path`, a file `current`, names.

    Raises:
        ArtifactDamaged: the key cannot be that of an artefact.
    """
    if not re.fullmatch(r"[0-9a-f]{16}", key):
        raise _unreadable(path, f"{key[:64]!r} is not the key of an artefact")
    return find_folder(path.parent / key)


def _read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        ArtifactDamaged: the file cannot be read, or holds anything else.
    """
    try:
        return read_record(path)
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, reason: object) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"{path} cannot be read ({reason}). Remove {path.parent} and build again."
    )


def read_artifact(folder: Path) -> Artifact:
    """Read `folder/artifact.json`; the files beside it are not looked at.

    Raises:
        ArtifactDamaged: it is not a record.
    """
    path = folder / RECORD_FILE
    with refusing(partial(_unreadable, path)):
        return Artifact(folder, read_artifact_record(path), _bundle_of(folder))


def _bundle_of(folder: Path) -> Path | None:
    """The bundle that holds the weights of an artefact in this folder; None for any other."""
    bundle = running()
    if bundle and bundle.home and folder.is_relative_to(bundle.home):
        return bundle.file
    return None


def _damaged(artifact: Artifact, what: str) -> ArtifactDamaged:
    record = artifact.record
    return ArtifactDamaged(
        f"{what}. Build it again: matryo build {record.model_id} --precision {record.precision}"
    )
