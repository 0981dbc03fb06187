"""The format of a bundle: one executable file that holds the server, its command line and a model.

    launcher      a static program, which unpacks the code once and becomes the unpacked program
    code          a zip archive: interpreter, libraries, `home/`, a store with one artefact
    weights       the artefact's large tensors; ONNX Runtime maps them from the bundle
    index         JSON: what the file holds, and sha256 of each part and of each unpacked file
    footer        fixed length: where code and index are, their sha256, and its own

Each part begins at a multiple of `ALIGN_BYTES` and reaches up to the next part, with zeros at its
end, so that every byte of the file is hashed. `build/bundle/launcher.c` reads the same footer.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from matryo.core.choices import Precision
from matryo.core.errors import ArtifactDamaged
from matryo.store.files import sha256_file
from matryo.store.records import FileRecord

MAGIC = b"matryo bundle 1\n"
"""Begins the footer; the number is the format's version."""

ALIGN_BYTES = 1 << 16
"""A multiple of every page size, so that a mapping may begin at each part."""

INDEX_MAX_BYTES = 1 << 24
"""Most bytes of an index; a real one has about 60 kB."""

CODE, WEIGHTS = "code", "weights"
HOME_FOLDER = "home"
"""The folder of the unpacked code that is the store."""

# Set by the launcher to the path of the bundle.
_VARIABLE = "_MATRYO_BUNDLE"
_FOOTER = struct.Struct("<16s6Q32s32s")
_CHUNK_BYTES = 1 << 20
FOOTER_BYTES = _FOOTER.size + hashlib.sha256().digest_size

# The path of the weights' file in the graph. The bundle may have any name, and the graph's bytes
# are the same under every name: slashes make the path as long as the longest name allows.
_LOCATION_BYTES = 1 + 255
LOCATION = "." + "/" * (_LOCATION_BYTES - 1)
"""The weights' file in a bundled graph, until `bundled_graph` names the bundle."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of the file, and its SHA-256."""

    name: str
    offset: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """What a bundle holds.

    Attributes:
        version: Matryo's version.
        platform: system and processor that the code runs on.
        model_id: the model.
        precision: of its artefact.
        fingerprint: of its vectors at the model's own size.
        settings: values fixed at bundling, by setting.
        locked: names of the settings that no request may change.
        parts: in the order of the file.
        unpacked: the files that the code unpacks to, by path.
    """

    version: str
    platform: str
    model_id: str
    precision: Precision
    fingerprint: str
    settings: dict[str, str]
    locked: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    unpacked: dict[str, FileRecord] = field(default_factory=dict[str, FileRecord])


_INDEX = TypeAdapter(Index)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        file: its path.
        index: what it holds.
        key: 32 hex digits, the name of the folder of the unpacked code.
        folder: the unpacked code, if this process runs from the bundle; else None.
    """

    file: Path
    index: Index
    key: str
    folder: Path | None = None

    @property
    def home(self) -> Path | None:
        """The unpacked store; None for a bundle that this process does not run from."""
        return self.folder and self.folder / HOME_FOLDER

    def check(self) -> None:
        """Compare every byte of the file, and every unpacked file, with its SHA-256.

        Raises:
            ArtifactDamaged: a part or an unpacked file is not what was bundled.
        """
        # hashlib frees the interpreter's lock: both use a core.
        for half in [_in_thread(self._check_parts), _in_thread(self._check_folder)]:
            half.result()

    def _check_parts(self) -> None:
        with self.file.open("rb") as file:
            for part in self.index.parts:
                if _sha256(file.fileno(), part.offset, part.bytes) != part.sha256:
                    raise damaged(self.file, f"the sha256 of its {part.name} is wrong")

    def _check_folder(self) -> None:
        if self.folder is None:
            return
        for name, expected in self.index.unpacked.items():
            path = self.folder / name
            try:
                intact = path.stat().st_size == expected.bytes
                intact = intact and sha256_file(path) == expected.sha256
            except OSError:
                intact = False
            if not intact:
                raise ArtifactDamaged(
                    f"{path} is not the file that {self.file} unpacked. Remove {self.folder}, and "
                    "start again."
                )


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """The result of `work` in a thread, which does not keep the process from ending."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="matryo-check", daemon=True).start()
    return future


def damaged(file: Path, what: str) -> ArtifactDamaged:
    """The error for a bundle that cannot be used."""
    return ArtifactDamaged(f"{file} is damaged: {what}. Copy the file again.")


def _sha256(descriptor: int, offset: int, n_bytes: int) -> str:
    digest, end = hashlib.sha256(), offset + n_bytes
    view = memoryview(bytearray(_CHUNK_BYTES))
    while offset < end and (n_read := os.preadv(descriptor, [view[: end - offset]], offset)):
        digest.update(view[:n_read])
        offset += n_read
    return digest.hexdigest()


# --- reading


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file. Footer and index are checked, and the other parts are not.

    Raises:
        ArtifactDamaged: the file is no bundle, is of another version of the format, or is not
            what was written.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        footer = os.pread(file.fileno(), FOOTER_BYTES, max(0, n_bytes - FOOTER_BYTES))
        name, _, version = MAGIC.rpartition(b" ")
        if len(footer) < FOOTER_BYTES or not footer.startswith(name):
            raise damaged(path, "it does not end with the footer of a bundle")
        if not footer.startswith(MAGIC):
            found = footer[len(name) : len(MAGIC)].decode("ascii", "replace").strip()
            raise ArtifactDamaged(
                f"{path} has version {found} of a bundle's format, and this is version "
                f"{version.decode().strip()}. Use the version of Matryo that wrote the file."
            )
        if hashlib.sha256(footer[: _FOOTER.size]).digest() != footer[_FOOTER.size :]:
            raise damaged(path, "the sha256 of its footer is wrong")
        _, file_bytes, code_offset, code_bytes, _, index_offset, index_bytes, code, sha256 = (
            _FOOTER.unpack_from(footer)
        )
        if file_bytes != n_bytes:
            raise damaged(path, f"it has {n_bytes:,} bytes of {file_bytes:,}")
        if index_bytes > INDEX_MAX_BYTES or index_offset + index_bytes + FOOTER_BYTES != n_bytes:
            raise damaged(path, "its index is not before its footer")
        content = os.pread(file.fileno(), index_bytes, index_offset)
    if hashlib.sha256(content).digest() != sha256:
        raise damaged(path, "the sha256 of its index is wrong")
    try:
        index = _INDEX.validate_json(content, strict=True)
    except ValidationError as exc:
        raise damaged(path, f"its index cannot be read ({exc.error_count()} faults)") from exc
    _check_layout(path, index.parts, index_offset)
    parts = {part.name: part for part in index.parts}
    if (code_part := parts.get(CODE)) != Part(CODE, code_offset, code_bytes, code.hex()):
        raise damaged(path, f"footer and index name different code ({code_part})")
    return Bundle(path, index, sha256.hex()[:32])


def _check_layout(path: Path, parts: Iterable[Part], end: int) -> None:
    """Refuse parts that leave a byte out, overlap, or begin where no page begins."""
    at = 0
    for part in parts:
        if part.offset != at or part.offset % ALIGN_BYTES:
            raise damaged(path, f"its {part.name} begins at {part.offset}, and not at {at}")
        at += part.bytes
    if at != end:
        raise damaged(path, f"its parts end at {at}, and its index begins at {end}")


@functools.cache
def running() -> Bundle | None:
    """The bundle that this process runs from; None for an installed Matryo.

    Raises:
        ArtifactDamaged: the file was changed or replaced after the code was unpacked.
    """
    path = os.environ.get(_VARIABLE)
    if not path or not getattr(sys, "frozen", False):
        return None
    try:
        bundle = read_bundle(Path(path))
    except OSError as exc:
        raise ArtifactDamaged(
            f"{path} cannot be read: {exc.strerror}. Copy the file to its path again."
        ) from exc
    folder = Path(sys.executable).resolve().parent
    if folder.name != bundle.key:
        raise damaged(bundle.file, f"it was replaced after its code was unpacked to {folder}")
    return Bundle(bundle.file, bundle.index, bundle.key, folder)


@functools.cache
def running_check() -> Future[None] | None:
    """The check of the bundle that this process runs from; None outside of a bundle.

    The first call begins the check, which goes on in threads: this process may import and load
    meanwhile, but must wait for the result before the first answer. `result()` raises
    `ArtifactDamaged`.
    """
    if (bundle := running()) is None:
        return None
    return _in_thread(bundle.check)


def bundled_graph(graph: Path, weights: Path) -> bytes | None:
    """A graph with the bundle's name in it; None if no tensor of the graph lies in a bundle.

    Args:
        graph: the graph as it was bundled.
        weights: the bundle.
    """
    name = os.fsencode(weights.name)
    location = b"." + b"/" * (_LOCATION_BYTES - 1 - len(name)) + name
    content = graph.read_bytes()
    return content.replace(LOCATION.encode(), location) if LOCATION.encode() in content else None


# --- writing


class BundleWriter:
    """Writes a bundle part by part.

    Args:
        path: the file; replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._parts: list[Part] = []

    def close(self) -> None:
        """Close the file; a bundle without `finish` is not one."""
        self._file.close()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts so far."""
        return tuple(self._parts)

    @property
    def offset(self) -> int:
        """Offset of the next part."""
        return self._file.tell()

    def add(self, name: str, sources: Iterable[Path]) -> Part:
        """Append the bytes of files as one part, each file at a multiple of `ALIGN_BYTES`."""
        offset, digest = self.offset, hashlib.sha256()
        for source in sources:
            with source.open("rb") as reader:
                while piece := reader.read(_CHUNK_BYTES):
                    digest.update(piece)
                    self._file.write(piece)
            zeros = bytes(-self.offset % ALIGN_BYTES)
            digest.update(zeros)
            self._file.write(zeros)
        part = Part(name, offset, self.offset - offset, digest.hexdigest())
        self._parts.append(part)
        return part

    def finish(self, index: Index) -> None:
        """Write index and footer, and have the disk hold the file.

        Args:
            index: what the file holds; `parts` are those that were added.
        """
        code = next(part for part in self._parts if part.name == CODE)
        whole = Index(
            **{
                name: getattr(index, name) for name in Index.__dataclass_fields__ if name != "parts"
            },
            parts=tuple(self._parts),
        )
        content = _INDEX.dump_json(whole)
        offset = self.offset
        footer = _FOOTER.pack(
            MAGIC,
            offset + len(content) + FOOTER_BYTES,
            code.offset,
            code.bytes,
            sum(file.bytes for file in index.unpacked.values()),
            offset,
            len(content),
            bytes.fromhex(code.sha256),
            hashlib.sha256(content).digest(),
        )
        self._file.write(content + footer + hashlib.sha256(footer).digest())
        self._file.flush()
        os.fsync(self._file.fileno())
