"""`python -m matryo.commands.prepare`: pull, build and lay out one model.

Servers and `Embedder` run this module in a process of its own before they load a model. The
first line of standard input has the settings. The process ends when its standard input does. Its
standard output is one line, the seconds of each step, or `{"error": REASON}`; whatever else writes
there writes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from matryo.core.signals import Stopped, stoppable

if TYPE_CHECKING:
    from matryo.core.settings import Settings
    from matryo.core.steps import Steps

_PATIENCE_S = 5.0


def main() -> int:
    """Prepare the first model of the settings; returns the exit status."""
    try:
        with stoppable():
            return _run()
    except Stopped as exc:  # the parent says so
        return exc.status


def _run() -> int:
    from matryo.core import logging as logs
    from matryo.core.errors import MatryoError
    from matryo.core.lifetime import end_with_parent
    from matryo.core.settings import Settings
    from matryo.core.steps import Steps

    job = sys.stdin.readline()
    # Not `sys.stdin.read`: a thread in it would hold a lock that the end of Python takes.
    end_with_parent(lambda: os.read(sys.stdin.fileno(), 1), _PATIENCE_S)
    if not job:  # the parent ended before it had written the settings
        return 1
    report = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    steps = Steps()
    with os.fdopen(report, "w") as file:
        try:
            with steps.timed("build"):
                _prepare(Settings(**json.loads(job)), steps)
        except MatryoError as exc:
            logs.fatal(exc.message)
            file.write(json.dumps({"error": exc.message}))
            return 1
        file.write(json.dumps(steps.seconds))
    return 0


def _prepare(settings: Settings, steps: Steps) -> None:
    from matryo.assembly.models import referred
    from matryo.catalog.catalog import open_catalog
    from matryo.core.errors import ArtifactDamaged, ArtifactMissing
    from matryo.core.progress import TerminalReporter
    from matryo.engine.packing import pack_model
    from matryo.store.artifact import find_artifact
    from matryo.store.layout import open_store

    reporter = TerminalReporter()
    store, catalog, name = open_store(settings), open_catalog(settings), settings.model[0]
    if reference := referred(catalog, name):
        from matryo.build.provision import derive_model

        name = derive_model(store, catalog, reference, reporter, steps=steps).name
        catalog = open_catalog(settings)
    manifest = catalog.manifest(name)
    precision = manifest.precision_for(settings.precision)
    try:
        find_artifact(store, manifest, precision).check_files()
    except (ArtifactMissing, ArtifactDamaged):
        # A bundle has its artefact, and no libraries to build another one.
        from matryo.build.provision import ensure_model

        trust = settings.trust_manifest
        ensure_model(store, manifest, precision, reporter, trust_manifest=trust, steps=steps)
    pack_model(store, manifest, precision, reporter=reporter)


if __name__ == "__main__":
    sys.exit(main())
