"""Models ready to run, whatever it takes: what is missing is pulled and built first."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys

import click

from matryo.catalog.catalog import open_catalog
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, MatryoError
from matryo.core.settings import Settings
from matryo.engine import Engine
from matryo.engine.onnx.prepacked import is_settled
from matryo.main import load_engines
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store

log = logging.getLogger("matryo")


def ready_engines(settings: Settings) -> tuple[Engine, ...]:
    """The models of `settings`, loaded; missing and damaged artefacts are built.

    Raises:
        SetupError: anything that keeps a model from being served.
        SystemExit: a build failed, and has said why.
    """
    make_ready(settings)
    try:
        return load_engines(settings)
    except ArtifactDamaged as exc:
        log.warning("%s Building it again.", exc.message)
    for model_id in settings.model:
        _prepare_apart(settings, model_id)
    return load_engines(settings)


def make_ready(settings: Settings) -> None:
    """Pull, build and pack what is missing of the models of `settings`.

    Raises:
        SetupError: an unknown model, or a bad manifest.
        SystemExit: a build failed, and has said why.
    """
    for model_id in settings.model:
        if not _is_ready(settings, model_id):
            _prepare_apart(settings, model_id)


def _is_ready(settings: Settings, model_id: str) -> bool:
    manifest = open_catalog(settings).manifest(model_id)
    precision = manifest.precision_for(settings.precision)
    try:
        artifact = find_artifact(Store(settings.home), manifest, precision)
    except (ArtifactMissing, ArtifactDamaged):
        log.info("%s has no artefact in %s to serve; making one", model_id, precision)
        return False
    # In a store that we may not write, weights cannot be packed; they need not be.
    return is_settled(artifact) or not os.access(artifact.folder, os.W_OK)


def _prepare_apart(settings: Settings, model_id: str) -> None:
    """Pull, build and pack in a process of its own.

    A server that had built once would keep the build's libraries and memory for good.
    """
    child = multiprocessing.get_context("spawn").Process(
        target=_prepare, args=(settings, model_id), name="matryo-build"
    )
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(1)  # it has said why


def _prepare(settings: Settings, model_id: str) -> None:
    from matryo.build.provision import ensure_model, pack_model
    from matryo.core.progress import bar

    def report(sentence: str) -> None:
        click.echo(sentence, err=True)

    store, manifest = Store(settings.home), open_catalog(settings).manifest(model_id)
    precision = manifest.precision_for(settings.precision)
    try:
        try:
            find_artifact(store, manifest, precision).check_files()
        except (ArtifactMissing, ArtifactDamaged):
            ensure_model(store, manifest, precision, progress=bar, report=report)
        pack_model(store, manifest, precision, report=report)
    except MatryoError as exc:
        click.echo(f"matryo: {exc.message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
