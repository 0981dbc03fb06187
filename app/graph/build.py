"""`matryo build`: from a checkpoint to an artefact that is complete, checked and current.

read -> emit -> check -> record -> rename. Everything is written aside; a build that is
killed, or fails, leaves the artefact that was there before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import CheckpointMismatch
from app.core.manifest import Manifest, Precision
from app.graph import arch
from app.graph.artifact import (
    BUILDER_VERSION,
    CURRENT_FILE,
    DATA_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    Artifact,
    ArtifactRecord,
    FileRecord,
    artifact_key,
    read_artifact,
    write_record,
)
from app.graph.check import check_graph
from app.graph.checkpoint.safetensors import SafetensorsCheckpoint
from app.graph.checkpoint.tokenizer import tokenizer_json
from app.graph.emit import GraphBuilder
from app.graph.progress import Progress
from app.graph.store import (
    TEMPORARY,
    Store,
    remove_tree,
    room_for,
    sha256_file,
    write_atomically,
)

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one checkpoint, hashed.

    Attributes:
        verified: every hash is the manifest's.
    """

    weights: Path
    tokenizer: Path
    weights_sha256: str
    tokenizer_sha256: str
    verified: bool


def build(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path,
    *,
    allow_unverified: bool,
    progress: Progress,
    report: Callable[[str], None],
) -> Artifact:
    """Build the artefact of `manifest` from `checkpoint` and make it the current one.

    Call under the store's lock of this model.

    Args:
        store: where it goes.
        manifest: the model.
        precision: one that the manifest offers.
        checkpoint: a folder with `model.safetensors` and `tokenizer.json`, or the
            `.safetensors` file in such a folder.
        allow_unverified: accept files whose hash is not the manifest's.
        progress: shows the long steps.
        report: takes one sentence for each step worth telling.

    Raises:
        CheckpointMismatch: files are missing, damaged, or not the manifest's.
        UnsupportedArchitecture: no graph for what the manifest describes.
        StoreFull: not enough room on the disk.
        BuildFailed: the graph does not compute what the checkpoint says.
    """
    architecture, config = arch.load(manifest)
    folder = store.artifacts(manifest.id, precision)
    with room_for(store.home):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"*{TEMPORARY}*"):  # of a build that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    aside = folder / f"new{TEMPORARY}-{os.getpid()}"
    try:
        with room_for(store.home):
            aside.mkdir()
        files = _read_files(manifest, checkpoint, aside, allow_unverified, progress)
        key = artifact_key(manifest, precision, files.weights_sha256, files.tokenizer_sha256)

        with room_for(store.home, files.weights.stat().st_size):
            report(f"building {manifest.id} in {precision}")
            weights = architecture.bind(SafetensorsCheckpoint(files.weights), config)
            with GraphBuilder(aside / GRAPH_FILE, aside / DATA_FILE) as graph:
                architecture.emit(graph, weights, config)
                graph.save(manifest.id)
        vocab_size = manifest.architecture.config["vocab_size"]
        error = check_graph(aside / GRAPH_FILE, architecture, weights, config, vocab_size)
        report(f"checked against the plain forward: max abs difference {error:.2g}")

        with room_for(store.home):
            if files.tokenizer.parent != aside:
                shutil.copyfile(files.tokenizer, aside / TOKENIZER_FILE)
            record = ArtifactRecord(
                model_id=manifest.id,
                precision=precision,
                key=key,
                builder_version=BUILDER_VERSION,
                output_key=manifest.output_key,
                checkpoint_sha256=files.weights_sha256,
                tokenizer_sha256=files.tokenizer_sha256,
                verified=files.verified,
                checkpoint_path=str(checkpoint.resolve()),
                max_abs_error=error,
                files={
                    name: FileRecord((aside / name).stat().st_size, sha256_file(aside / name))
                    for name in (GRAPH_FILE, DATA_FILE, TOKENIZER_FILE)
                },
            )
            write_record(aside, record)
            remove_tree(folder / key)
            aside.rename(folder / key)
            write_atomically(folder / CURRENT_FILE, key)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in folder.iterdir():
        if old.is_dir() and old.name != key:
            remove_tree(old)
    return read_artifact(folder / key)


def _read_files(
    manifest: Manifest,
    checkpoint: Path,
    aside: Path,
    allow_unverified: bool,  # noqa: FBT001
    progress: Progress,
) -> CheckpointFiles:
    """Find the checkpoint's files and hash them before anything is made of them."""
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    weights = checkpoint if checkpoint.is_file() else folder / WEIGHTS_FILE
    if not weights.is_file():
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise CheckpointMismatch(
            f"{weights}: no such file"
            + (f"; {folder} holds {', '.join(there[:8]) or 'nothing'}" if there else "")
        )
    if weights.suffix != ".safetensors":
        raise CheckpointMismatch(
            f"{weights}: cannot read '{weights.suffix}' checkpoints; give a .safetensors file "
            "or a folder with model.safetensors and tokenizer.json"
        )
    tokenizer = tokenizer_json(folder, aside)

    hashes: dict[str, str] = {}
    verified = True
    for name, path in ((WEIGHTS_FILE, weights), (TOKENIZER_FILE, tokenizer)):
        with progress(f"hashing {path.name}", path.stat().st_size) as advance:
            hashes[name] = sha256_file(path, advance)
        expected = manifest.files[name].sha256
        if hashes[name] == expected:
            continue
        verified = False
        if not allow_unverified:
            raise CheckpointMismatch(
                f"{path} has sha256 {hashes[name]}, but {manifest.id} is pinned to {expected}. "
                "Fetch it again, or give --unverified to build from it all the same."
            )
    return CheckpointFiles(
        weights, tokenizer, hashes[WEIGHTS_FILE], hashes[TOKENIZER_FILE], verified
    )
