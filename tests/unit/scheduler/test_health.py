"""Readiness, and which models the heartbeat must run, by an injected clock."""

from __future__ import annotations

from matryo.scheduler.health import Health
from tests.fakes import MINILM, NOMIC, FakeEngine

ENGINES = (FakeEngine(NOMIC), FakeEngine(MINILM))


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def ready() -> tuple[Health, Clock]:
    """Two models that ran just now."""
    clock = Clock()
    health = Health(ENGINES, 30.0, clock)
    for engine in ENGINES:
        health.succeeded(engine)
    return health, clock


def test_every_model_must_have_run() -> None:
    """One model that never ran keeps the service from being ready, and is due."""
    health = Health(ENGINES, 30.0, Clock())
    health.succeeded(ENGINES[0])
    assert health.why_not_ready() == f"{MINILM.id} has not run yet"
    assert health.due() == [ENGINES[1]]
    health.succeeded(ENGINES[1])
    assert health.why_not_ready() is None
    assert health.due() == []


def test_a_failure_lasts_until_a_success() -> None:
    """A model whose last run failed is not ready, and due at once."""
    health, _ = ready()
    health.failed(ENGINES[1])
    assert health.why_not_ready() == f"the last run of {MINILM.id} failed"
    assert health.due() == [ENGINES[1]]
    health.succeeded(ENGINES[1])
    assert health.why_not_ready() is None


def test_all_models_fail_together() -> None:
    """A worker that died says nothing good of any model."""
    health, _ = ready()
    health.failed()
    assert health.due() == list(ENGINES)


def test_a_success_grows_old() -> None:
    """A model is due after a third of the interval, and not ready after all of it."""
    health, clock = ready()
    clock.now += 9.9
    assert health.due() == []
    clock.now += 0.1
    assert health.due() == list(ENGINES)
    clock.now += 20
    assert health.why_not_ready() is None
    clock.now += 1
    assert health.why_not_ready() == f"{NOMIC.id} last ran 31 s ago"
