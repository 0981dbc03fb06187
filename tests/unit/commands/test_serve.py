"""A start looks for no garbage; a server that is ready does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from matryo.commands import serve
from matryo.core.environment import load_settings
from matryo.core.metrics import Metrics
from matryo.http.listening import Listener


def test_garbage_is_looked_for_once_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """No collection runs while models load. Once ready, what the start made is never looked at."""
    enabled: list[bool] = []
    ready: list[tuple[bool, int]] = []
    n_before = gc.get_freeze_count()
    context = SimpleNamespace(metrics=Metrics(CollectorRegistry()))
    application = SimpleNamespace(state=SimpleNamespace(context=context))

    def load(*_: object) -> tuple[()]:
        enabled.append(gc.isenabled())
        return ()

    def build(*_: object, on_ready: Callable[[], None], **_more: object) -> Any:
        return SimpleNamespace(run=on_ready)

    monkeypatch.setattr(serve, "ready_engines", load)
    monkeypatch.setattr(serve, "create_app", lambda *_: application)
    monkeypatch.setattr(serve, "build_server", build)
    monkeypatch.setattr(serve, "tune_allocator", lambda: None)
    for name in ("configure", "on_drop"):
        monkeypatch.setattr(serve.logs, name, lambda *_: None)
    try:
        serve.serve_on(
            load_settings(None),
            cast("Listener", None),
            lambda: ready.append((gc.isenabled(), gc.get_freeze_count())),
        )
    finally:
        gc.enable()
        gc.unfreeze()
    assert enabled == [False]
    ((is_enabled, n_frozen),) = ready
    assert is_enabled
    assert n_frozen > n_before
