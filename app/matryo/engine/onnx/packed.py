"""Weights in the layout of this CPU's kernels, saved once and mapped by every session.

ORT rearranges each weight for its kernels and keeps that copy to itself: two sessions of v1.5
in fp32 would hold 0.9 GB. Saved beside the artefact and mapped, sessions and processes share
one copy in the page cache. It takes twice the artefact's room on disk. The layout belongs to
one CPU and one version of ORT, which are in the folder's name.

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
class PackedGraph:
    """A packed graph on disk."""

    folder: Path
    files: dict[str, FileRecord]

    @property
    def graph(self) -> Path:
        """Path of the graph."""
        return self.folder / GRAPH_FILE

    def intact(self) -> bool:
        """Whether every file is the one that was written, by size and sha256."""
        return all(
            path.is_file()
            and path.stat().st_size == file.bytes
            and sha256_file(path) == file.sha256
            for path, file in ((self.folder / name, file) for name, file in self.files.items())
        )


def find_packed(artifact: Artifact) -> PackedGraph | None:
    """The packed graph of this artefact for this machine, if there is one."""
    files = _recorded(artifact)
    return PackedGraph(_folder(artifact), files) if files else None


def is_settled(artifact: Artifact) -> bool:
    """Whether this artefact is packed for this machine, or known not to be packable here."""
    return _recorded(artifact) is not None


def _recorded(artifact: Artifact) -> dict[str, FileRecord] | None:
    """Files of the packed graph, none where it cannot be packed; None if nothing is known."""
    try:
        text = (_folder(artifact) / _RECORD_FILE).read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        return {name: FileRecord(**facts) for name, facts in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def pack(artifact: Artifact) -> None:
    """Save the packed graph, unless it is there; the artefact's files must have been checked.

    An artefact that cannot be packed is noted as such, so that no start tries it again: ORT
    1.31 gives other values from saved `MatMulNBits` weights, those of q8 and q4.

    Call under the store's lock of this model.

    Raises:
        StoreFull: the disk has no room for another copy of the weights.
        StoreUnwritable: the store is not ours to write.
        BuildFailed: ORT cannot save it, or it computes anything else than the artefact.
    """
    if is_settled(artifact):
        return
    # ORT writes each weight twice: packed, and as it was, to tell what it has packed.
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
    """Record the files of `aside`, if any, and give the folder its final name."""
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
    """8 hex digits of ORT's version and of what this CPU can do: weights are laid out for both."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        told = []
    # The same for every core, and at every start; "Features" are ARM's flags.
    lines = {line for line in told if line.startswith(("model name", "flags", "Features"))}
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
        raise BuildFailed(f"{graph}: ONNX Runtime cannot save packed weights: {exc}") from exc


def _compare(graph: Path, packed: Path) -> None:
    """Hold a packed graph against the one it was made of: the same bits, at any thread count."""
    ids = np.arange(1, 25, dtype=np.int64).reshape(3, 8)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    expected = GraphSession(graph, session_options(threads=1)).run(ids, mask, apply_mask=True)
    for threads in (1, 2):
        found = GraphSession(packed, session_options(threads)).run(ids, mask, apply_mask=True)
        if not np.array_equal(found[mask == 1], expected[mask == 1]):
            raise BuildFailed(f"{graph}: ONNX Runtime gives other values with packed weights")
