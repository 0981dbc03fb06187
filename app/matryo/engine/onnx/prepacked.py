"""Prepacked weights: in the layout of this CPU's kernels, saved once and mapped by every session.

ORT rearranges each weight for its kernels. By itself each session keeps a copy of its own: two
sessions of nomic-embed-text-v1.5 in fp32 would hold 0.9 GB. Sessions and processes share one copy
in the page cache where they map a graph that was saved with its weights prepacked. The saved graph
takes twice the artefact's bytes on disk. The layout belongs to one CPU and one version of ORT; a
hash of both is in the folder's name.

The names `packed-<hash>` and `packed.json` on disk are older than the word "prepacked", and stay:
stores of earlier versions have them.

Source: onnxruntime_session_options_config_keys.h,
`session.save_external_prepacked_constant_initializers`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matryo.core.errors import BuildFailed
from matryo.engine.onnx.runtime import ORT_VERSION, GraphSession, session_options
from matryo.store.artifact import DATA_FILE, GRAPH_FILE, Artifact, FileRecord
from matryo.store.files import (
    remove_file,
    remove_tree,
    replace_folder,
    room_for,
    sha256_file,
    temporary_folder,
    write_atomically,
)

_RECORD_FILE = "packed.json"
_PREFIX = "packed-"
_INLINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class PrepackedGraph:
    """A graph with prepacked weights on disk.

    Attributes:
        folder: of all its files.
        files: size and sha256 of each file, by name.
    """

    folder: Path
    files: dict[str, FileRecord]

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
    """The prepacked graph of this artefact for this machine; None if there is none."""
    files = _recorded(artifact)
    return PrepackedGraph(_folder(artifact), files) if files else None


def is_settled(artifact: Artifact) -> bool:
    """Whether a prepacked graph for this machine exists, or is known to be impossible."""
    return _recorded(artifact) is not None


def _recorded(artifact: Artifact) -> dict[str, FileRecord] | None:
    """Files of the prepacked graph, empty where it is impossible; None if nothing is known."""
    try:
        text = (_folder(artifact) / _RECORD_FILE).read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        return {name: FileRecord(**facts) for name, facts in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def prepack(artifact: Artifact) -> None:
    """Save the prepacked graph of an artefact for this machine, unless that is settled.

    A graph that computes other values than the artefact's own is deleted, and the failure is
    recorded: later starts do not try again. ORT 1.31 computes other values from the saved weights
    of `MatMulNBits`, which q8 and q4 use.

    Args:
        artifact: its files must have been checked, and the caller must hold the store's lock of
            the model.

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
        _save(artifact.graph, aside)
        try:
            _compare(artifact.graph, aside / GRAPH_FILE)
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
    final = _folder(artifact)
    replace_folder(aside, final)
    for old in artifact.folder.glob(f"{_PREFIX}*"):  # of another machine
        if old != final:
            remove_tree(old)


def _folder(artifact: Artifact) -> Path:
    return artifact.folder / f"{_PREFIX}{machine_key()}"


@functools.cache
def machine_key() -> str:
    """8 hex digits that stand for ORT's version and this CPU: the layout of weights suits both."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        facts = []
    # These lines are the same for every core and at every start. "Features" are ARM's flags.
    lines = {line for line in facts if line.startswith(("model name", "flags", "Features"))}
    cpu = "".join(sorted(lines)) or platform.processor() or platform.machine()
    return hashlib.sha256(f"{ORT_VERSION}\n{cpu}".encode()).hexdigest()[:8]


def _save(graph: Path, folder: Path) -> None:
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", DATA_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    try:
        GraphSession(graph, options)
    except Exception as exc:
        raise BuildFailed(f"{graph}: ONNX Runtime cannot save prepacked weights: {exc}") from exc


def _compare(graph: Path, prepacked: Path) -> None:
    """Run a prepacked graph and the graph that it was saved from.

    Raises:
        BuildFailed: a bit of the results differs, at any thread count.
    """
    ids = np.arange(1, 25, dtype=np.int64).reshape(3, 8)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    expected = GraphSession(graph, session_options(threads=1)).run(ids, mask, apply_mask=True)
    for threads in (1, 2):
        found = GraphSession(prepacked, session_options(threads)).run(ids, mask, apply_mask=True)
        if not np.array_equal(found[mask == 1], expected[mask == 1]):
            raise BuildFailed(f"{graph}: ONNX Runtime computes other values from prepacked weights")
