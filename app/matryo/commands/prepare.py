"""`python -m matryo.commands.prepare`: pull, build and lay out one model; settings on stdin.

Servers and `Embedder` run this module in a process of its own before they load a model.
"""

from __future__ import annotations

import json
import sys

from matryo.catalog.catalog import open_catalog
from matryo.core import logging as logs
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, MatryoError
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store


def main() -> int:
    """Prepare the first model of the settings on standard input; returns the exit status."""
    settings = Settings(**json.load(sys.stdin))
    try:
        _prepare(settings)
    except MatryoError as exc:
        logs.fatal(exc.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _prepare(settings: Settings) -> None:
    from matryo.build.provision import ensure_model, pack_model

    reporter = TerminalReporter()
    store, manifest = Store(settings.home), open_catalog(settings).manifest(settings.model[0])
    precision = manifest.precision_for(settings.precision)
    try:
        find_artifact(store, manifest, precision).check_files()
    except (ArtifactMissing, ArtifactDamaged):
        ensure_model(store, manifest, precision, reporter=reporter)
    pack_model(store, manifest, precision, reporter=reporter)


if __name__ == "__main__":
    sys.exit(main())
