"""Prepacked weights: in the layout of this CPU's kernels, saved once and mapped by every session.

ORT rearranges each weight for its kernels. By itself each session keeps a copy of its own: two
sessions of nomic-embed-text-v1.5 in fp32 would hold 0.9 GB. Sessions and processes share one copy
in the page cache where they map a graph that was saved with its weights prepacked. The saved graph
takes twice the artefact's bytes on disk. The layout belongs to one CPU and one version of ORT; a
hash of both is in the folder's name.

Machines of several kinds may share a store, so that an artefact may have several such folders. A
process that saves one removes another folder only if

- the folder has no record, or a file of the record is missing or has another size; or
- the folder is of this CPU and another version of ORT, and no process has it open; or
- no process has loaded the folder for `UNUSED_DAYS` days, and none has it open.

The names `packed-<hash>` and `packed.json` on disk are older than the word "prepacked", and stay:
stores of earlier versions have them.

Source: onnxruntime_session_options_config_keys.h,
`session.save_external_prepacked_constant_initializers`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from matryo.catalog.output import Output
from matryo.core.errors import BuildFailed
from matryo.engine.onnx.runtime import ORT_VERSION, GraphSession, session_options
from matryo.store.artifact import DATA_FILE, GRAPH_FILE, Artifact
from matryo.store.files import (
    remove_file,
    remove_tree,
    replace_folder,
    room_for,
    sha256_file,
    temporary_folder,
    write_atomically,
)
from matryo.store.records import FileRecord, read_file_records, read_record

_RECORD_FILE = "packed.json"
_MACHINE_FILE = "machine.json"
_PREFIX = "packed-"
_INLINE_BYTES = 16 * 1024

UNUSED_DAYS = 90
"""Days after which prepacked weights that no process has loaded since may be removed."""


@dataclass(frozen=True, slots=True)
class PrepackedGraph:
    """A graph with prepacked weights on disk.

    Attributes:
        folder: of all its files.
        files: size and sha256 of each file, by name.
    """

    folder: Path
    files: dict[str, FileRecord]

    def hold(self, user: object) -> None:
        """Mark the graph as used now, and as in use for as long as `user` lives."""
        with contextlib.suppress(OSError):  # removed, or on a disk without locks
            descriptor = os.open(self.folder / _RECORD_FILE, os.O_RDONLY)
            weakref.finalize(user, os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):  # on a disk that we may not write
            os.utime(self.folder / _RECORD_FILE)

    @property
    def graph(self) -> Path:
        """Path of the graph file."""
        return self.folder / GRAPH_FILE

    def intact(self) -> bool:
        """Whether size and sha256 of every file are those that were recorded."""
        return all(
            path.is_file()
            and path.stat().st_size == file.bytes
            and sha256_file(path) == file.sha256
            for path, file in ((self.folder / name, file) for name, file in self.files.items())
        )


def find_prepacked(artifact: Artifact) -> PrepackedGraph | None:
    """The prepacked graph of this artefact for this machine; None if there is none.

    A graph of native operators has none: its own weights are packed already.
    """
    files = _recorded(artifact)
    return PrepackedGraph(_folder(artifact), files) if files else None


def is_settled(artifact: Artifact) -> bool:
    """Whether a prepacked graph for this machine exists, or is known to be impossible."""
    return artifact.record.native > 0 or _recorded(artifact) is not None


def _recorded(artifact: Artifact) -> dict[str, FileRecord] | None:
    """Files of the prepacked graph, empty where it is impossible; None if nothing is known."""
    return _read_record(_folder(artifact))


def _read_record(folder: Path) -> dict[str, FileRecord] | None:
    """The files that a folder records; None if it has no record."""
    try:
        return read_file_records(folder / _RECORD_FILE)
    except (OSError, ValueError):
        return None


def prepack(artifact: Artifact, output: Output | None = None) -> None:
    """Save the prepacked graph of an artefact for this machine, unless that is settled.

    A graph that computes other values than the artefact's own is deleted, and the failure is
    recorded: later starts do not try again. ORT 1.31 computes other values from the saved weights
    of `MatMulNBits`, which q8 and q4 use.

    Args:
        artifact: its files must have been checked, and the caller must hold the store's lock of
            the model.
        output: the manifest's output; None reads the hidden states under their usual names.

    Raises:
        StoreFull: the disk has no room for another copy of the weights.
        StoreUnwritable: this process may not write to the store.
        BuildFailed: ORT cannot save the graph, or the saved graph computes other values.
    """
    if is_settled(artifact):
        return
    # ORT writes each weight twice: prepacked, and unchanged, to recognise what it prepacked.
    with (
        room_for(artifact.folder, 2 * artifact.n_bytes),
        temporary_folder(artifact.folder, _PREFIX) as aside,
    ):
        _save(artifact, aside, output)
        try:
            _compare(artifact, aside / GRAPH_FILE, output)
        except BuildFailed:
            for path in aside.iterdir():
                remove_file(path)
            _settle(artifact, aside)
            raise
        _settle(artifact, aside)


def _settle(artifact: Artifact, aside: Path) -> None:
    """Record the files in `aside`, if any, and give the folder its final name."""
    files = {
        path.name: asdict(FileRecord(path.stat().st_size, sha256_file(path)))
        for path in sorted(aside.iterdir())
    }
    write_atomically(aside / _RECORD_FILE, json.dumps(files, indent=1))
    if files:
        machine = {"cpu": cpu_key(), "onnxruntime": ORT_VERSION}
        write_atomically(aside / _MACHINE_FILE, json.dumps(machine))
    final = _folder(artifact)
    replace_folder(aside, final)
    for other in artifact.folder.glob(f"{_PREFIX}*"):
        if other != final and _is_useless(other):
            remove_tree(other)


def _is_useless(folder: Path) -> bool:
    """Whether the prepacked weights of another machine may be removed; see the rule above."""
    record = _read_record(folder)
    if record is None:
        return True
    for name, file in record.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.bytes:
            return True
    unused_s = time.time() - (folder / _RECORD_FILE).stat().st_mtime
    if unused_s < UNUSED_DAYS * 24 * 3600 and not _is_outdated(folder):
        return False
    return not _in_use(folder)


def _is_outdated(folder: Path) -> bool:
    """Whether prepacked weights are of this CPU and another version of ORT."""
    try:
        machine = read_record(folder / _MACHINE_FILE)
        return bool(machine["cpu"] == cpu_key() and machine["onnxruntime"] != ORT_VERSION)
    except (OSError, ValueError, KeyError):  # earlier builds did not say
        return False


def _in_use(folder: Path) -> bool:
    """Whether a process has the prepacked weights open, on any machine that shares the disk."""
    with (folder / _RECORD_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _folder(artifact: Artifact) -> Path:
    return artifact.folder / f"{_PREFIX}{machine_key()}"


@functools.cache
def machine_key() -> str:
    """8 hex digits that stand for ORT's version and this CPU: the layout of weights suits both."""
    return hashlib.sha256(f"{ORT_VERSION}\n{_cpu()}".encode()).hexdigest()[:8]


@functools.cache
def cpu_key() -> str:
    """8 hex digits that stand for this kind of CPU."""
    return hashlib.sha256(_cpu().encode()).hexdigest()[:8]


def _cpu() -> str:
    """What the operating system says of this kind of CPU."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        facts = []
    # These lines are the same for every core and at every start. "Features" are ARM's flags.
    lines = {line for line in facts if line.startswith(("model name", "flags", "Features"))}
    return "".join(sorted(lines)) or platform.processor() or platform.machine()


def _save(artifact: Artifact, folder: Path, output: Output | None) -> None:
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", DATA_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    try:
        GraphSession(artifact.graph, options, output, artifact.weights)
    except Exception as exc:
        raise BuildFailed(
            f"{artifact.graph}: ONNX Runtime cannot save prepacked weights: {exc}"
        ) from exc


def _compare(artifact: Artifact, prepacked: Path, output: Output | None) -> None:
    """Run a prepacked graph and the graph that it was saved from.

    Raises:
        BuildFailed: a bit of the results differs, at any thread count.
    """
    graph = artifact.graph
    original = GraphSession(graph, session_options(threads=1), output, artifact.weights)
    ids = np.arange(1, 25, dtype=np.int64).reshape(3, 8)[:, : original.plan.n_tokens]
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    compared = mask.any(axis=1) if original.plan.gives_vectors else mask == 1
    expected = original.run(ids, mask, apply_mask=True)
    for threads in (1, 2):
        session = GraphSession(prepacked, session_options(threads), output)
        found = session.run(ids, mask, apply_mask=True)
        if not np.array_equal(found[compared], expected[compared]):
            raise BuildFailed(f"{graph}: ONNX Runtime computes other values from prepacked weights")
