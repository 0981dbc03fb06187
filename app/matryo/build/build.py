"""`matryo build`: from a checkpoint to an artefact that is complete, checked and current.

The order is read, emit, check, record, rename, make current. Everything is written aside: a
build that fails or is killed leaves the artefact that was there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matryo.build import arch
from matryo.build.check import Agreement, check_graph, tokenize_texts
from matryo.build.dense import read_dense
from matryo.build.derive.contradictions import contradictions
from matryo.build.derive.files import read_layout
from matryo.build.emit import GraphBuilder
from matryo.build.inputs import (
    CheckpointFiles,
    check_unchanged,
    naming_the_checkpoint,
    open_checkpoint,
    read_files,
)
from matryo.build.tokenizer import TokenizerFile, write_lowercasing
from matryo.build.trial import try_graph
from matryo.build.vocabulary import check_rows
from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed, CheckpointMismatch, ManifestInvalid
from matryo.core.native import INTERFACE
from matryo.core.progress import Reporter
from matryo.engine.dense import save_dense
from matryo.store.artifact import (
    BUILDER_VERSION,
    DATA_FILE,
    DENSE_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    Artifact,
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
from matryo.store.records import ArtifactRecord, FileRecord


@dataclass(frozen=True, slots=True)
class _Written:
    """A graph that was written, and how near it is to what it should compute.

    Attributes:
        files: names of the graph's files.
        lacks: tensors that the model has and the checkpoint lacks.
        native: the interface of matryo-native that the graph uses; 0 for none.
    """

    files: tuple[str, ...]
    lacks: tuple[str, ...]
    agreement: Agreement
    native: int = 0


def build(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path,
    *,
    allow_unverified: bool,
    trust_manifest: bool,
    reporter: Reporter,
) -> Artifact:
    """Build the artefact of `manifest` from `checkpoint` and make it the current one.

    Call under the store's lock of this model.

    Args:
        store: the store.
        manifest: the model.
        precision: one that the manifest offers.
        checkpoint: absolute path of a folder with `model.safetensors` and `tokenizer.json`, or
            of a `.safetensors`, `.gguf` or `.onnx` file. Links are kept as they are.
        allow_unverified: accept files whose hash is not the manifest's.
        trust_manifest: build although the checkpoint's files contradict the manifest.
        reporter: takes a sentence for each step, and the progress of the long ones.

    Raises:
        ManifestInvalid: the checkpoint's files contradict the manifest.
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
        with naming_the_checkpoint(store):
            files = read_files(
                store,
                manifest,
                checkpoint,
                aside,
                allow_unverified=allow_unverified,
                reporter=reporter,
            )
            if manifest.tokenizer.lowercase:
                files = replace(files, tokenizer=write_lowercasing(files.tokenizer, aside))
            against = contradictions(manifest, read_layout(files.weights))
            _check_agreement(manifest, against, reporter, trust_manifest=trust_manifest)
            layers = read_dense(manifest.output.dense, [Path(file.path) for file in files.dense])
            write = _adopt if files.ready else _emit
            reporter.say(f"building {manifest.id} in {precision} from {files.weights.name}")
            written = write(store, manifest, precision, files, aside, reporter)
            check_unchanged(files)
        _report(written, precision, reporter)
        with room_for(store.home):
            if files.tokenizer.parent != aside:
                copy_file(files.tokenizer, aside / TOKENIZER_FILE)
            if layers:
                save_dense(layers, aside / DENSE_FILE)
            with reporter.step("hashing what was written"):
                record = _record(manifest, precision, checkpoint, files, written, aside, against)
            write_record(aside, record)
            replace_folder(aside, folder / record.key)
            make_current(store, record)
    for old in folder.iterdir():
        if old.is_dir() and old.name != record.key:
            remove_tree(old)
    return read_artifact(folder / record.key)


def _check_agreement(
    manifest: Manifest, against: Sequence[str], reporter: Reporter, *, trust_manifest: bool
) -> None:
    """Refuse a manifest that the checkpoint's own files contradict, unless the operator trusts it.

    Raises:
        ManifestInvalid: they contradict, and the manifest is not trusted.
    """
    if against and not trust_manifest:
        raise ManifestInvalid(
            f"{manifest.id}: {'; '.join(against)}. Correct model.toml, or give --trust-manifest to "
            "build all the same, which the fingerprint then says."
        )
    for sentence in against:
        reporter.say(f"warning: {sentence}; the model.toml is trusted")


def _record(
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path,
    files: CheckpointFiles,
    written: _Written,
    folder: Path,
    against: list[str],
) -> ArtifactRecord:
    """The record of the artefact whose files are in `folder`."""
    dense_sha256 = tuple(file.sha256 for file in files.dense)
    key = artifact_key(
        manifest,
        precision,
        files.weights_sha256,
        files.tokenizer_sha256,
        (*written.lacks, *against),
        dense_sha256,
        written.native,
    )
    names = (*written.files, TOKENIZER_FILE, *([DENSE_FILE] if dense_sha256 else []))
    return ArtifactRecord(
        model_id=manifest.id,
        precision=precision,
        key=key,
        builder_version=BUILDER_VERSION,
        output_key=manifest.output_key,
        checkpoint_sha256=files.weights_sha256,
        tokenizer_sha256=files.tokenizer_sha256,
        verified=files.verified,
        checkpoint_path=str(checkpoint),
        lacks=written.lacks,
        against=tuple(against),
        max_abs_error=written.agreement.max_abs_error,
        min_cosine=written.agreement.min_cosine,
        files={
            name: FileRecord((folder / name).stat().st_size, sha256_file(folder / name))
            for name in names
        },
        sources=files.sources,
        dense_sha256=dense_sha256,
        native=written.native,
    )


def _emit(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    files: CheckpointFiles,
    aside: Path,
    reporter: Reporter,
) -> _Written:
    """Write the graph of the manifest's architecture with the checkpoint's weights."""
    for key, value in (
        ("output.steps", "given" if manifest.output.given else None),
        ("output.graph_output", manifest.output.graph_output),
    ):
        if value is not None:
            raise CheckpointMismatch(
                f"model.toml says {value} in {key}, which is for a ready ONNX graph, but "
                f"{files.weights} holds weights. Give the .onnx file, or change {key}."
            )
    architecture, config = arch.load(manifest)
    checkpoint = open_checkpoint(files.weights)
    try:
        with reporter.step("reading the weights"):
            weights = architecture.bind(checkpoint, config)
        special = manifest.tokenizer.add_special_tokens
        tokenizer = TokenizerFile(files.tokenizer, add_special_tokens=special)
        check_rows(tokenizer, weights.shape("word_embeddings")[0], files.weights.name)
        texts = tokenize_texts(tokenizer, manifest)
        with (
            reporter.step("writing the graph"),
            room_for(store.home, files.weights.stat().st_size),
            GraphBuilder(
                aside / GRAPH_FILE, aside / DATA_FILE, native=store.native(precision)
            ) as graph,
        ):
            architecture.emit(graph, weights, config, precision)
            graph.save(manifest.id)
        with (
            reporter.step("computing a few texts without the graph"),
            np.errstate(all="ignore"),  # the check refuses what is not finite
        ):
            expected = architecture.forward(weights, config, texts)
    finally:
        checkpoint.close()  # before ORT maps the artefact: never both at once
    native = INTERFACE if store.native(precision) else 0
    with reporter.step("checking the graph"):
        agreement = check_graph(
            aside / GRAPH_FILE, tokenizer, expected, manifest, precision, native=bool(native)
        )
    return _Written((GRAPH_FILE, DATA_FILE), weights.lacks, agreement, native)


def _adopt(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    files: CheckpointFiles,
    aside: Path,
    reporter: Reporter,
) -> _Written:
    """Take a ready ONNX graph as it is."""
    if precision != "fp32":
        raise BuildFailed(
            f"{files.weights} is a ready graph and is served as it is; {precision} is made of a "
            ".safetensors or .gguf checkpoint. Leave --precision out, or give one of those."
        )
    ready = files.ready
    assert ready, "a graph"
    with reporter.step("copying the graph"), room_for(store.home, ready.n_bytes):
        copy_file(ready.path, aside / GRAPH_FILE)
        for path in ready.data:
            copy_file(path, aside / path.name)
    if ready.n_rows is not None:
        special = manifest.tokenizer.add_special_tokens
        tokenizer = TokenizerFile(files.tokenizer, add_special_tokens=special)
        check_rows(tokenizer, ready.n_rows, ready.path.name)
    limit = manifest.tokenizer.max_tokens
    if ready.n_positions is not None and limit > ready.n_positions:
        raise CheckpointMismatch(
            f"model.toml says tokenizer.max_tokens = {limit}, but {ready.path} has positions for "
            f"{ready.n_positions} tokens. Lower max_tokens to {ready.n_positions} or less."
        )
    if ready.n_tokens is not None and limit > ready.n_tokens:
        raise CheckpointMismatch(
            f"model.toml says tokenizer.max_tokens = {limit}, but {ready.path} runs exactly "
            f"{ready.n_tokens} tokens. Lower max_tokens to {ready.n_tokens} or less."
        )
    if ready.takes_positions and manifest.architecture.config.get("pad_token_id") is not None:
        raise CheckpointMismatch(
            f"{ready.path} has the input position_ids, and positions of a "
            f"{manifest.architecture.model_type} do not begin at 0. Export the graph without that "
            "input."
        )
    with reporter.step("checking the graph"):
        agreement = try_graph(aside / GRAPH_FILE, ready.n_bytes, files.tokenizer, manifest)
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
