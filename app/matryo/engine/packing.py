"""Saves the weights of an artefact in this machine's layout, before a server loads them."""

from __future__ import annotations

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed, StoreFull, StoreUnwritable
from matryo.core.progress import Reporter
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store


def pack_model(store: Store, manifest: Manifest, precision: Precision, reporter: Reporter) -> None:
    """Save the weights of the artefact last built in this machine's layout, if possible.

    A failure is reported and not raised: each process then keeps a copy of its own.

    Raises:
        ArtifactMissing: there is no artefact.
        ArtifactDamaged: a file is not the one that was built.
    """
    from matryo.engine.onnx.prepacked import prepack

    with store.lock_reporting(manifest.id, reporter):
        artifact = find_artifact(store, manifest, precision)
        artifact.check_files()
        try:
            with reporter.step("laying out the weights for this machine"):
                prepack(artifact, manifest.output)
        except (StoreFull, StoreUnwritable, BuildFailed) as exc:
            reporter.say(f"weights stay in this process's own memory: {exc.message}")
