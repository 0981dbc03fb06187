"""Models ready to run, whatever it takes: what is missing is pulled and built first."""

from __future__ import annotations

import logging
import multiprocessing
import sys

import click

from app.core.errors import ArtifactDamaged, ArtifactMissing, MatryoError
from app.core.settings import Settings
from app.engine import Engine
from app.graph.artifact import find_artifact
from app.graph.store import Store
from app.main import load_engines

log = logging.getLogger("matryo")


def ready_engines(settings: Settings) -> tuple[Engine, ...]:
    """The models of `settings`, loaded; missing and damaged artefacts are built.

    Raises:
        SetupError: anything that keeps a model from being served.
        SystemExit: a build failed, and has said why.
    """
    catalog, store = settings.catalog(), Store(settings.home)
    for model_id in settings.model:
        try:
            find_artifact(store, catalog.manifest(model_id), settings.precision)
        except (ArtifactMissing, ArtifactDamaged):
            log.info("%s has no artefact in %s to serve; making one", model_id, settings.precision)
            _build_apart(settings, model_id)
    try:
        return load_engines(settings)
    except ArtifactDamaged as exc:
        log.warning("%s Building it again.", exc.message)
    for model_id in settings.model:
        _build_apart(settings, model_id)
    return load_engines(settings)


def _build_apart(settings: Settings, model_id: str) -> None:
    """Pull and build in a process of its own.

    A server that had built once would keep the build's libraries and memory for good.
    """
    child = multiprocessing.get_context("spawn").Process(
        target=_build, args=(settings, model_id), name="matryo-build"
    )
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(1)  # it has said why


def _build(settings: Settings, model_id: str) -> None:
    from app.graph.progress import bar
    from app.graph.provision import ensure_model

    try:
        ensure_model(
            Store(settings.home),
            settings.catalog().manifest(model_id),
            settings.precision,
            progress=bar,
            report=lambda sentence: click.echo(sentence, err=True),
        )
    except MatryoError as exc:
        click.echo(f"matryo: {exc.message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
