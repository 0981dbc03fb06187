"""From a model id to an artefact that can be served: pulls and builds what is missing.

`matryo build` and `matryo serve` share this module, so that a model gets ready in one way.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from matryo.build import arch
from matryo.build.build import build
from matryo.build.derive.files import read_layout
from matryo.build.derive.repository import Fetched, fetch_repository, publish
from matryo.build.derive.write import (
    Target,
    choose_id,
    folder_origin,
    hub_origin,
    reference_name,
    write_derived_model,
)
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import Manifest
from matryo.catalog.pins import pinned, pins_path
from matryo.core.choices import Precision
from matryo.core.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    CheckpointMismatch,
)
from matryo.core.progress import Reporter
from matryo.core.steps import Steps
from matryo.store.artifact import Artifact, find_artifact, unverified_origin
from matryo.store.derived import find_derived, models_folder
from matryo.store.encodings import ENCODING
from matryo.store.files import folder_bytes, given_path, remove_file, remove_nested, room_for
from matryo.store.layout import MODELS_LOCK, Store
from matryo.store.pull.checkpoint import pull
from matryo.store.pull.encoding import pull_table
from matryo.store.references import Reference


def build_model(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    checkpoint: Path | None,
    *,
    allow_unverified: bool,
    reporter: Reporter,
    trust_manifest: bool = False,
) -> Artifact:
    """What `matryo build` does: build from `checkpoint`, or from the manifest's own.

    The manifest's own checkpoint is pulled if the store lacks it, and fetched again if a file
    in the store is damaged. An intact artefact of that checkpoint is kept.

    Raises:
        SetupError: of any kind; see `pull` and `build`.
    """
    arch.load(manifest)  # what has no graph is not worth a download
    precision = manifest.precision_for(precision)
    if checkpoint is not None:
        checkpoint = given_path(checkpoint)
    with store.lock_reporting(manifest.id, reporter):
        if checkpoint is not None:
            return build(
                store,
                manifest,
                precision,
                checkpoint,
                allow_unverified=allow_unverified,
                trust_manifest=trust_manifest,
                reporter=reporter,
            )
        return _build_published(store, manifest, precision, reporter, trust=trust_manifest)


def ensure_model(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    reporter: Reporter,
    *,
    trust_manifest: bool = False,
    steps: Steps | None = None,
) -> Artifact:
    """What `matryo serve` needs: the artefact last built, or one built now.

    An artefact that somebody built from weights of their own is only ever built again from those,
    and is built again when they have changed.

    Args:
        store: the store.
        manifest: of the model.
        precision: of the artefact.
        reporter: takes what is done, line by line.
        trust_manifest: build a model although its files contradict its manifest.
        steps: gets the seconds of the pull.

    Raises:
        SetupError: of any kind; see `pull` and `build`.
    """
    arch.load(manifest)
    precision = manifest.precision_for(precision)
    with store.lock_reporting(manifest.id, reporter):
        if artifact := _intact(store, manifest, precision, reporter):
            return artifact
        origin = unverified_origin(store, manifest.id, precision)
        if origin is None:
            return _build_published(
                store, manifest, precision, reporter, trust=trust_manifest, steps=steps
            )
        if not origin.exists():
            raise ArtifactMissing(
                f"{manifest.id} was last built from {origin}, which is gone, and that artefact "
                "cannot be used any more. Build it again with --checkpoint PATH --unverified, or "
                f"from the published weights with: matryo build {manifest.id}"
            )
        return build(
            store,
            manifest,
            precision,
            origin,
            allow_unverified=True,
            trust_manifest=trust_manifest,
            reporter=reporter,
        )


def pull_model(store: Store, manifest: Manifest, origin: str | None, reporter: Reporter) -> Path:
    """What `matryo pull` does: `pull` under the store's lock.

    Raises:
        SetupError: of any kind; see `pull`.
    """
    with store.lock_reporting(manifest.id, reporter):
        return pull(store, manifest, origin, reporter)


def derive_model(
    store: Store,
    catalog: Catalog,
    reference: Reference,
    reporter: Reporter,
    *,
    target: Target | None = None,
    steps: Steps | None = None,
) -> Path:
    """The folder of the model of a path or a repository, derived if that was not done before.

    Args:
        store: the store.
        catalog: every model that there is.
        reference: what the operator named.
        reporter: takes what was derived, line by line.
        target: where the model goes; None for the store, where a known model is not derived again.
        steps: gets the seconds of the pull.

    Raises:
        SetupError: the checkpoint cannot be read, fetched or computed; says what to do.
    """
    with store.lock_reporting(MODELS_LOCK, reporter):
        known = find_derived(store.home, reference.text)
        if target is None and known is not None:
            return models_folder(store.home) / known
        fetched: Fetched | None = None
        if reference.path is not None:
            layout = read_layout(reference.path)
        else:
            with (steps or Steps()).timed("pull"):
                fetched = fetch_repository(store, reference, reporter)
            layout = read_layout(fetched.folder)
        if target is None:
            model_id = choose_id(store, catalog, reference_name(layout, reference), reference)
            target = Target(models_folder(store.home), model_id)
        origin = folder_origin(layout.root)
        if fetched:
            origin = hub_origin(catalog, fetched.source, target.model_id)
        manifest = write_derived_model(layout, origin, reference, target, reporter)
        if fetched:
            publish(store, fetched, manifest)
        return target.parent / manifest.id


def remove_model(store: Store, model_id: str, reporter: Reporter) -> int | None:
    """Remove a model's checkpoints, artefacts, pins and derived manifest from the store.

    Returns:
        The bytes that were given back; None if the store had nothing of the model.
    """
    if Path(model_id).name != model_id or model_id.startswith("."):
        return None
    checkpoints, artifacts, derived = folders = store.model_folders(model_id)
    pins = pins_path(store.home, model_id)
    if not any(path.exists() for path in (*folders, pins)):
        return None
    with contextlib.ExitStack() as locks:
        if derived.exists():
            locks.enter_context(store.lock_reporting(MODELS_LOCK, reporter))
        locks.enter_context(store.lock_reporting(model_id, reporter))
        with room_for(store.home):
            n_bytes = sum(map(folder_bytes, folders))
            remove_file(derived / "model.toml")  # no catalogue finds the model from here on
            remove_nested(derived, 1)
            remove_nested(artifacts, 2)
            remove_nested(checkpoints, 1)
            remove_file(pins)
    return n_bytes


def pull_encoding(store: Store, origin: str | None, reporter: Reporter) -> Path:
    """What `matryo pull cl100k_base` does: `pull_table` under a lock of the store.

    Raises:
        SetupError: of any kind; see `pull_table`.
    """
    with store.lock_reporting(ENCODING, reporter):
        return pull_table(store, origin, reporter)


def _build_published(
    store: Store,
    manifest: Manifest,
    precision: Precision,
    reporter: Reporter,
    *,
    trust: bool,
    steps: Steps | None = None,
) -> Artifact:
    """The artefact of the manifest's own checkpoint: an intact one, or one built now."""
    artifact = _intact(store, manifest, precision, reporter)
    if artifact and artifact.record.verified:
        reporter.say(f"{manifest.id}: already built in {precision} in {artifact.folder}")
        return artifact

    def build_from(manifest: Manifest, source: Path) -> Artifact:
        return build(
            store,
            manifest,
            precision,
            source,
            allow_unverified=False,
            trust_manifest=trust,
            reporter=reporter,
        )

    if manifest.folder:
        return build_from(manifest, manifest.folder)
    folder = store.checkpoint(manifest.id, manifest.checkpoint_key)
    if manifest.is_pinned and folder.is_dir():
        try:
            return build_from(manifest, folder)
        except CheckpointMismatch as exc:
            reporter.say(f"{exc.message} Fetching it again.")
    with (steps or Steps()).timed("pull"):
        folder = pull(store, manifest, None, reporter)
    return build_from(pinned(manifest, store.home), folder)


def _intact(
    store: Store, manifest: Manifest, precision: Precision, reporter: Reporter
) -> Artifact | None:
    """The artefact to serve if every file is the one that was built; None otherwise."""
    try:
        artifact = find_artifact(store, manifest, precision)
        artifact.check_files()
    except ArtifactMissing:
        return None
    except ArtifactDamaged as exc:
        reporter.say(exc.message)
        return None
    return artifact
