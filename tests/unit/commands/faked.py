"""`matryo embed` on an engine without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from matryo.commands.embedding import command
from matryo.commands.embedding.chunks import Chunking
from matryo.commands.embedding.command import Wish
from matryo.commands.sources.item import Reading
from matryo.core.environment import load_settings
from matryo.core.metrics import Metrics
from matryo.service import Options, Service, ServiceConfig
from tests.fakes import MINILM, FakeEngine


def embed(
    inputs: Sequence[object],
    output: object,
    *,
    engine: FakeEngine | None = None,
    reading: Reading | None = None,
    options: Options | None = None,
    home: Path | None = None,
    **more: Any,
) -> None:
    """Run the command on inputs; `more` are further fields of `Wish`."""
    wish = Wish(
        [str(one) for one in inputs],
        reading or Reading(),
        None if output is None else str(output),
        options or Options(priority="bulk"),
        **more,
    )
    used = engine or FakeEngine(MINILM)
    settings = load_settings(model=(used.manifest.id,), home=str(home) if home else None)

    def service(*_: object, **__: object) -> Service:
        return Service([used], ServiceConfig(), Metrics(CollectorRegistry()))

    with patch.object(command, "build_local_service", service):
        command.run(settings, wish)


__all__ = ["Chunking", "FakeEngine", "Options", "Reading", "embed"]
