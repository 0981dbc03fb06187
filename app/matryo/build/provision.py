"""From a model id to an artefact fit to serve: what is missing is pulled and built.

`matryo build` and `matryo serve` share it, so that there is one way a model gets ready.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matryo.build import arch
from matryo.build.build import build
from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    BuildFailed,
    CheckpointMismatch,
    StoreFull,
    StoreUnwritable,
)
from matryo.core.progress import Progress
from matryo.engine.onnx.prepacked import prepack
from matryo.store.artifact import Artifact, find_artifact, unverified_origin
from matryo.store.encodings import ENCODING, pull_table
from matryo.store.layout import Store
from matryo.store.pull.checkpoint import pull


def build_model(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path | None,
    *,
    allow_unverified: bool,
    progress: Progress,
    report: Callable[[str], None],
) -> Artifact:
    """What `matryo build` does: build from `checkpoint`, or from the manifest's own.

    The manifest's own checkpoint is pulled if it is not there, and fetched again if it was
    damaged in the store. An artefact that is already as it would be built is kept.

    Raises:
        SetupError: of any kind; see `pull` and `build`.
    """
    arch.load(manifest)  # what has no graph is not worth a download
    with store.lock(manifest.id, waiting=lambda: report(_WAITING.format(manifest.id))):

        def build_from(source: Path) -> Artifact:
            return build(
                store,
                manifest,
                precision,
                source,
                allow_unverified=allow_unverified,
                progress=progress,
                report=report,
            )

        if checkpoint is not None:
            return build_from(checkpoint)
        artifact = _intact(store, manifest, precision, report)
        if artifact and artifact.record.verified:
            report(f"{manifest.id}: already built in {precision} in {artifact.folder}")
            return artifact
        folder = store.checkpoint(manifest.id, manifest.checkpoint_key)
        if folder.is_dir():
            try:
                return build_from(folder)
            except CheckpointMismatch as exc:
                report(f"{exc.message} Fetching it again.")
        return build_from(pull(store, manifest, None, progress=progress, report=report))


def ensure_model(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> Artifact:
    """What `matryo serve` needs: the artefact last built, or one built now.

    An artefact that somebody built from weights of their own is only ever built again
    from those.

    Raises:
        SetupError: of any kind; see `pull` and `build`.
    """
    origin = unverified_origin(store, manifest.id, precision)
    if origin is not None and not origin.exists():
        raise ArtifactMissing(
            f"{manifest.id} was last built from {origin}, which is gone, by a version whose "
            "artefacts cannot be used any more. Build it again with --checkpoint PATH "
            f"--unverified, or from the published weights with: matryo build {manifest.id}"
        )
    return build_model(
        store,
        manifest,
        precision,
        origin,
        allow_unverified=origin is not None,
        progress=progress,
        report=report,
    )


def pack_model(
    store: Store, manifest: Manifest, precision: Precision, *, report: Callable[[str], None]
) -> None:
    """Save the weights of the artefact last built in this machine's layout, if that is possible.

    Without it a process keeps a copy of its own, so what keeps us from it is only told.

    Raises:
        ArtifactMissing: there is no artefact.
        ArtifactDamaged: a file is not the one that was built.
    """
    with store.lock(manifest.id, waiting=lambda: report(_WAITING.format(manifest.id))):
        artifact = find_artifact(store, manifest, precision)
        artifact.check_files()
        try:
            prepack(artifact)
        except (StoreFull, StoreUnwritable, BuildFailed) as exc:
            report(f"weights stay in this process's own memory: {exc.message}")


def pull_model(
    store: Store,
    manifest: Manifest,
    origin: str | None,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> Path:
    """What `matryo pull` does: `pull` under the store's lock.

    Raises:
        SetupError: of any kind; see `pull`.
    """
    with store.lock(manifest.id, waiting=lambda: report(_WAITING.format(manifest.id))):
        return pull(store, manifest, origin, progress=progress, report=report)


def pull_encoding(
    store: Store, origin: str | None, *, progress: Progress, report: Callable[[str], None]
) -> Path:
    """What `matryo pull cl100k_base` does: `pull_table` under a lock of the store.

    Raises:
        SetupError: of any kind; see `pull_table`.
    """
    with store.lock(ENCODING, waiting=lambda: report(_WAITING.format(ENCODING))):
        return pull_table(store, origin, progress=progress, report=report)


_WAITING = "{}: another process is pulling or building it; waiting for that to end"


def _intact(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    report: Callable[[str], None],
) -> Artifact | None:
    try:
        artifact = find_artifact(store, manifest, precision)
        artifact.check_files()
    except ArtifactMissing:
        return None
    except ArtifactDamaged as exc:
        report(exc.message)
        return None
    return artifact
