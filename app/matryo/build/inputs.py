"""The files of a checkpoint that a build reads: found, hashed, and held against the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from matryo.build.checkpoint import Checkpoint
from matryo.build.checkpoint.onnx import ReadyGraph, read_ready_graph
from matryo.build.checkpoint.shards import ShardedCheckpoint, shard_files
from matryo.build.checkpoint.tokenizer import FoundTokenizer, find_tokenizer, rebuild_from_gguf
from matryo.build.dense import find_dense
from matryo.build.trial import try_tokenizer
from matryo.build.vocabulary import find_contradiction
from matryo.catalog.manifest import Manifest
from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import Reporter
from matryo.store.artifact import TOKENIZER_FILE
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from matryo.store.sources import SourceFile, stamp_of
from matryo.store.unread import INDEX_FILE, WEIGHTS_FILE, explain_file, explain_folder

_FORMATS = (".safetensors", ".gguf", ".onnx")
# ONNX begins with its version (field 1), and the next field of a model.
_ONNX_FIELDS = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one checkpoint, hashed.

    Attributes:
        weights: the file of the weights, as the user named it.
        suffix: of the weights' format: `.safetensors`, `.gguf` or `.onnx`.
        tokenizer: `tokenizer.json`.
        ready: the graph and its data files, if the weights are a ready graph.
        weights_sha256: hash of the weights; of a ready graph with data files, of all of these.
        verified: every hash is the manifest's.
        sources: the files of the user that were read, the weights first.
        dense: the file of each dense step, in order.
    """

    weights: Path
    suffix: str
    tokenizer: Path
    ready: ReadyGraph | None
    weights_sha256: str
    tokenizer_sha256: str
    verified: bool
    sources: tuple[SourceFile, ...]
    dense: tuple[SourceFile, ...] = ()


def weights_file(checkpoint: Path, name: str = WEIGHTS_FILE) -> Path:
    """Path of the weights: `checkpoint` itself, or the file of the weights in that folder.

    Args:
        checkpoint: a folder or a file.
        name: of the weights in the folder, as the manifest says. A folder without that file may
            have an index of shards in its place.
    """
    if not checkpoint.is_dir():
        return checkpoint
    weights = checkpoint / name
    index = checkpoint / INDEX_FILE
    return index if not os.path.lexists(weights) and index.is_file() else weights


def format_of(path: Path) -> str | None:
    """Suffix of a checkpoint's format: by its name, else by its first bytes; None if unknown.

    A hub cache keeps its files under their hashes, so that a name may have no suffix.
    """
    if path.name == INDEX_FILE:
        return ".safetensors"
    if (suffix := path.suffix.lower()) in _FORMATS:
        return suffix
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"GGUF":
        return ".gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return ".safetensors"
    if head[:1] == b"\x08" and len(head) > 2 and head[2] in _ONNX_FIELDS:  # noqa: PLR2004
        return ".onnx"
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """The weights in `path`, a safetensors or GGUF file, or an index of shards.

    Raises:
        CheckpointMismatch: the file is not of that format, or damaged.
    """
    if format_of(path) == ".gguf":
        from matryo.build.checkpoint.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.name == INDEX_FILE:
        return ShardedCheckpoint(path)
    from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


@contextlib.contextmanager
def naming_the_checkpoint(store: Store) -> Generator[None, None, None]:
    """Name a file outside of the store that cannot be read.

    Raises:
        CheckpointMismatch: the operating system refuses a file of the checkpoint.
    """
    try:
        yield
    except OSError as exc:
        if exc.filename is None or Path(exc.filename).is_relative_to(store.home):
            raise
        raise CheckpointMismatch(
            f"{exc.filename} cannot be read: {exc.strerror}. Give this user access to the file, "
            "or give another --checkpoint."
        ) from exc


def read_files(
    store: Store,
    manifest: Manifest,
    checkpoint: Path,
    into: Path,
    *,
    allow_unverified: bool,
    reporter: Reporter,
) -> CheckpointFiles:
    """Find the checkpoint's files, and hash them before anything is made of them.

    Args:
        store: holds the published checkpoint, if it was pulled.
        manifest: pins hashes.
        checkpoint: a folder or a file, absolute.
        into: folder of a tokenizer that has to be made.
        allow_unverified: accept files whose hash the manifest does not pin, provided that
            weights and tokenizer can be of one model.
        reporter: takes a sentence about the tokenizer, and the progress of the hashing.

    Raises:
        CheckpointMismatch: a file is missing, cannot be read, or is not the manifest's; or
            weights and tokenizer are of two models.
    """
    weights = weights_file(checkpoint, manifest.weights)
    suffix = _format(checkpoint, weights)
    # No library parses a file that the manifest's hash refuses.
    sources = [hashed(weights, reporter)]
    kind = ".json" if weights.name == INDEX_FILE else suffix
    pinned = [_pin(manifest, manifest.weights, kind, sources[0].sha256, weights, allow_unverified)]
    for path in shard_files(weights):
        sources.append(hashed(path, reporter))
        name = path.relative_to(checkpoint if checkpoint.is_dir() else path.parent).as_posix()
        pinned.append(
            _pin(manifest, name, ".safetensors", sources[-1].sha256, path, allow_unverified)
        )
    stored = store.checkpoint(manifest.id, manifest.checkpoint_key)
    tokenizer = find_tokenizer(weights, suffix, stored, into, reporter)
    ready = read_ready_graph(weights, manifest.output) if suffix == ".onnx" else None
    data = [hashed(path, reporter) for path in (ready.data if ready else ())]
    sources += data
    specs = manifest.output.dense
    dense = [hashed(find_dense(spec, checkpoint, weights), reporter) for spec in specs]
    pins = [tuple(manifest.every_sha256)] * len(data)
    pins += [manifest.pinned_dense(spec) for spec in specs]
    for source, hashes in zip((*data, *dense), pins, strict=True):
        pinned.append(source.sha256 in hashes)
        if not pinned[-1] and not allow_unverified:
            raise CheckpointMismatch(
                f"{source.path} has sha256 {source.sha256}, which {manifest.id} does not pin. "
                "Give --unverified to build from it all the same."
            )
    found = hashed(tokenizer.path, reporter).sha256
    if tokenizer.given:
        name = _tokenizer_name(manifest)
        pinned.append(_pin(manifest, name, ".json", found, tokenizer.path, allow_unverified))
    else:  # made of the weights' file, or of files that count as the tokenizer does
        pinned += [sha256_file(path) in manifest.every_sha256 for path in tokenizer.made_of]
        if not all(pinned) and not allow_unverified:
            raise CheckpointMismatch(
                f"{manifest.id} does not pin {', '.join(path.name for path in tokenizer.made_of)}, "
                "which its tokenizer is made of. Give --unverified to build from them all the same."
            )
    verified = all(pinned)
    # A hash that a derivation took from the file itself says nothing of the file.
    trusted = verified and manifest.folder is None
    if not trusted and tokenizer.given:
        if not pinned[-1] or manifest.folder:
            try_tokenizer(tokenizer.path)
        tokenizer = _agreeing(tokenizer, weights, suffix, ready, into, reporter)
        found = sha256_file(tokenizer.path)
    hashes = [source.sha256 for source in sources]
    return CheckpointFiles(
        weights,
        suffix,
        tokenizer.path,
        ready,
        hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        found,
        verified,
        (*sources, *dense, *(hashed(path, reporter) for path in tokenizer.made_of)),
        tuple(dense),
    )


def check_unchanged(files: CheckpointFiles) -> None:
    """Hold the files against what they were when they were hashed.

    Raises:
        CheckpointMismatch: one was changed while it was built from.
    """
    for source in files.sources:
        if stamp_of(Path(source.path)) != source.stamp:
            raise CheckpointMismatch(
                f"{source.path} was changed while it was built from. Run the command again once "
                "the file is complete."
            )


def _format(checkpoint: Path, weights: Path) -> str:
    """Suffix of the format of the weights.

    Raises:
        CheckpointMismatch: there is no such file, or a file of another kind; says the remedy.
    """
    if not weights.is_file():
        what = "no such file"
        if weights.is_symlink():
            what = f"a link to {weights.readlink()}, which does not exist"
        hint = explain_folder(checkpoint if checkpoint.is_dir() else weights.parent)
        raise CheckpointMismatch(f"{weights}: {what}. {hint}".rstrip(". ") + ".")
    suffix, hint = format_of(weights), explain_file(weights)
    if suffix is None or hint:
        raise CheckpointMismatch(
            f"{weights}: cannot read '{weights.suffix}' checkpoints; give a .safetensors, .gguf "
            "or .onnx file, or a folder with model.safetensors and tokenizer.json. "
            f"{hint}".rstrip()
        )
    return suffix


def _tokenizer_name(manifest: Manifest) -> str:
    """The name of the tokenizer among the manifest's files: it lies with the weights."""
    beside = [name for name in manifest.files if name.rpartition("/")[2] == TOKENIZER_FILE]
    return beside[0] if beside else TOKENIZER_FILE


def hashed(path: Path, reporter: Reporter) -> SourceFile:
    """A file with its hash and its stamp, which is taken before."""
    stamp = stamp_of(path)
    with reporter.bar(f"hashing {path.name}", stamp[0]) as advance:
        return SourceFile(str(path), sha256_file(path, advance), stamp)


def _pin(
    manifest: Manifest,
    name: str,
    suffix: str,
    found: str,
    path: Path,
    allow_unverified: bool,  # noqa: FBT001
) -> bool:
    """Whether the manifest pins this hash.

    Raises:
        CheckpointMismatch: the hash is not pinned, and must be.
    """
    pinned = manifest.pinned_sha256(name, suffix)
    if found not in pinned and not allow_unverified:
        to = " or ".join(pinned) or f"no {suffix} file"
        raise CheckpointMismatch(
            f"{path} has sha256 {found}, but {manifest.id} is pinned to {to}. "
            "Fetch it again, or give --unverified to build from it all the same."
        )
    return found in pinned


def _agreeing(
    tokenizer: FoundTokenizer,
    weights: Path,
    suffix: str,
    ready: ReadyGraph | None,
    into: Path,
    reporter: Reporter,
) -> FoundTokenizer:
    """The tokenizer, if it can be of the same model as the weights; else a GGUF's own.

    Raises:
        CheckpointMismatch: it cannot, and the user put it there or the file has none of its own.
    """
    reason = find_contradiction(tokenizer.path, weights, suffix, ready)
    if reason is None:
        return tokenizer
    if suffix == ".gguf" and tokenizer.published:
        reporter.say(f"{reason}; the vocabulary in {weights.name} is used")
        return rebuild_from_gguf(weights, into, reporter)
    other = ", or remove it to use the vocabulary in the file" if suffix == ".gguf" else ""
    raise CheckpointMismatch(
        f"{reason}: they are of two models. Put the tokenizer.json of the model beside "
        f"{weights.name}{other}."
    )
