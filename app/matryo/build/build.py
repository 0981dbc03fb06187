"""`matryo build`: from a checkpoint to an artefact that is complete, checked and current.

The order is read, emit, check, record, rename, make current. Everything is written aside: a
build that fails or is killed leaves the artefact that was there before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matryo.build import arch
from matryo.build.check import Agreement, check_graph, tokenize_texts
from matryo.build.checkpoint import Checkpoint
from matryo.build.checkpoint.tokenizer import find_tokenizer
from matryo.build.emit import GraphBuilder
from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed, CheckpointMismatch
from matryo.core.progress import Reporter
from matryo.store.artifact import (
    BUILDER_VERSION,
    DATA_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    Artifact,
    ArtifactRecord,
    FileRecord,
    artifact_key,
    make_current,
    read_artifact,
    write_record,
)
from matryo.store.files import (
    copy_file,
    make_folder,
    remove_tree,
    replace_folder,
    room_for,
    sha256_file,
    temporary_folder,
)
from matryo.store.layout import Store

WEIGHTS_FILE = "model.safetensors"
_SUFFIXES = (".safetensors", ".gguf", ".onnx")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one checkpoint, hashed.

    Attributes:
        weights: a `.safetensors`, `.gguf` or `.onnx` file.
        verified: every hash is the manifest's.
    """

    weights: Path
    tokenizer: Path
    weights_sha256: str
    tokenizer_sha256: str
    verified: bool


@dataclass(frozen=True, slots=True)
class _Written:
    """A graph that was written, and how near it is to what it should compute.

    Attributes:
        files: names of the graph's files.
        lacks: tensors that the model has and the checkpoint lacks.
    """

    files: tuple[str, ...]
    lacks: tuple[str, ...]
    agreement: Agreement


def build(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path,
    *,
    allow_unverified: bool,
    reporter: Reporter,
) -> Artifact:
    """Build the artefact of `manifest` from `checkpoint` and make it the current one.

    Call under the store's lock of this model.

    Args:
        store: the store.
        manifest: the model.
        precision: one that the manifest offers.
        checkpoint: a folder with `model.safetensors` and `tokenizer.json`, or a
            `.safetensors`, `.gguf` or `.onnx` file.
        allow_unverified: accept files whose hash is not the manifest's.
        reporter: takes a sentence for each step, and the progress of the long ones.

    Raises:
        CheckpointMismatch: files are missing, damaged, or not the manifest's.
        UnsupportedArchitecture: there is no graph for what the manifest describes.
        StoreFull: the disk has not enough room.
        BuildFailed: the graph does not compute what the checkpoint says, or not accurately
            enough in this precision.
    """
    folder = store.artifacts(manifest.id, precision)
    with room_for(store.home):
        make_folder(folder)
    with temporary_folder(folder) as aside:
        files = _read_files(store, manifest, checkpoint, aside, allow_unverified, reporter)
        write = _adopt if files.weights.suffix == ".onnx" else _emit
        reporter.say(f"building {manifest.id} in {precision} from {files.weights.name}")
        written = write(store, manifest, precision, files, aside)
        _report(written, precision, reporter)
        with room_for(store.home):
            if files.tokenizer.parent != aside:
                copy_file(files.tokenizer, aside / TOKENIZER_FILE)
            record = _record(manifest, precision, checkpoint, files, written, aside)
            write_record(aside, record)
            replace_folder(aside, folder / record.key)
            make_current(store, record)
    for old in folder.iterdir():
        if old.is_dir() and old.name != record.key:
            remove_tree(old)
    return read_artifact(folder / record.key)


def _record(
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path,
    files: CheckpointFiles,
    written: _Written,
    folder: Path,
) -> ArtifactRecord:
    """The record of the artefact whose files are in `folder`."""
    key = artifact_key(
        manifest, precision, files.weights_sha256, files.tokenizer_sha256, written.lacks
    )
    return ArtifactRecord(
        model_id=manifest.id,
        precision=precision,
        key=key,
        builder_version=BUILDER_VERSION,
        output_key=manifest.output_key,
        checkpoint_sha256=files.weights_sha256,
        tokenizer_sha256=files.tokenizer_sha256,
        verified=files.verified,
        checkpoint_path=str(checkpoint.resolve()),
        lacks=written.lacks,
        max_abs_error=written.agreement.max_abs_error,
        min_cosine=written.agreement.min_cosine,
        files={
            name: FileRecord((folder / name).stat().st_size, sha256_file(folder / name))
            for name in (*written.files, TOKENIZER_FILE)
        },
    )


def weights_file(checkpoint: Path) -> Path:
    """Path of the weights: `checkpoint` itself, or `model.safetensors` in that folder."""
    return checkpoint / WEIGHTS_FILE if checkpoint.is_dir() else checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """The weights in `path`; the suffix of its name says the format.

    Raises:
        CheckpointMismatch: the file is not of that format, or damaged.
    """
    if path.suffix == ".gguf":
        from matryo.build.checkpoint.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


def _emit(
    store: Store, manifest: Manifest, precision: Precision, files: CheckpointFiles, aside: Path
) -> _Written:
    """Write the graph of the manifest's architecture with the checkpoint's weights."""
    architecture, config = arch.load(manifest)
    checkpoint = open_checkpoint(files.weights)
    try:
        weights = architecture.bind(checkpoint, config)
        texts = tokenize_texts(files.tokenizer, weights.shape("word_embeddings")[0])
        with (
            room_for(store.home, files.weights.stat().st_size),
            GraphBuilder(aside / GRAPH_FILE, aside / DATA_FILE) as graph,
        ):
            architecture.emit(graph, weights, config, precision)
            graph.save(manifest.id)
        expected = architecture.forward(weights, config, texts)
    finally:
        checkpoint.close()  # before ORT maps the artefact: never both at once
    agreement = check_graph(aside / GRAPH_FILE, texts, expected, manifest, precision)
    return _Written((GRAPH_FILE, DATA_FILE), weights.lacks, agreement)


def _adopt(
    store: Store, manifest: Manifest, precision: Precision, files: CheckpointFiles, aside: Path
) -> _Written:
    """Take a ready ONNX graph as it is."""
    from matryo.build.checkpoint.onnx import read_ready_graph

    if precision != "fp32":
        raise BuildFailed(
            f"{files.weights} is a ready graph and is served as it is; {precision} is made of a "
            ".safetensors or .gguf checkpoint. Leave --precision out, or give one of those."
        )
    ready = read_ready_graph(files.weights)
    with room_for(store.home, ready.n_bytes):
        copy_file(ready.path, aside / GRAPH_FILE)
        for path in ready.data:
            copy_file(path, aside / path.name)
    texts = tokenize_texts(files.tokenizer, None)
    agreement = check_graph(aside / GRAPH_FILE, texts, None, manifest, precision)
    return _Written((GRAPH_FILE, *(path.name for path in ready.data)), (), agreement)


def _report(written: _Written, precision: Precision, reporter: Reporter) -> None:
    agreement = written.agreement
    found = f"max abs difference {agreement.max_abs_error:.2g}"
    if precision != "fp32":
        found = f"least cosine {agreement.min_cosine:.6f}"
    reporter.say(f"checked against the plain forward: {found}")
    if written.lacks:
        shown = ", ".join(written.lacks[:3]) + (", ..." if len(written.lacks) > 3 else "")  # noqa: PLR2004
        reporter.say(
            f"warning: the checkpoint lacks {len(written.lacks)} of the model's tensors ({shown}); "
            "vectors differ from the published model's, and the fingerprint says so"
        )


def _read_files(
    store: Store,
    manifest: Manifest,
    checkpoint: Path,
    aside: Path,
    allow_unverified: bool,  # noqa: FBT001
    reporter: Reporter,
) -> CheckpointFiles:
    """Find the checkpoint's files and hash them before anything is made of them."""
    weights = weights_file(checkpoint)
    if not weights.is_file():
        folder = weights.parent
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise CheckpointMismatch(
            f"{weights}: no such file"
            + (f"; {folder} holds {', '.join(there[:8]) or 'nothing'}" if there else "")
        )
    if weights.suffix not in _SUFFIXES:
        raise CheckpointMismatch(
            f"{weights}: cannot read '{weights.suffix}' checkpoints; give a .safetensors, .gguf "
            "or .onnx file, or a folder with model.safetensors and tokenizer.json"
        )
    stored = store.checkpoint(manifest.id, manifest.checkpoint_key)
    tokenizer = find_tokenizer(weights, stored, aside, reporter)

    hashes: dict[str, str] = {}
    verified = True
    for name, path in ((WEIGHTS_FILE, weights), (TOKENIZER_FILE, tokenizer)):
        with reporter.bar(f"hashing {path.name}", path.stat().st_size) as advance:
            hashes[name] = sha256_file(path, advance)
        pinned = manifest.pinned_sha256(name, path.suffix)
        if hashes[name] in pinned:
            continue
        verified = False
        if not allow_unverified:
            to = " or ".join(pinned) or f"no {path.suffix} file"
            raise CheckpointMismatch(
                f"{path} has sha256 {hashes[name]}, but {manifest.id} is pinned to {to}. "
                "Fetch it again, or give --unverified to build from it all the same."
            )
    return CheckpointFiles(
        weights, tokenizer, hashes[WEIGHTS_FILE], hashes[TOKENIZER_FILE], verified
    )
