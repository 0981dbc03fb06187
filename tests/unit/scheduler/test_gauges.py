"""What a scrape sees of the scheduler, at a moment that the test chooses."""

from __future__ import annotations

import numpy as np

from matryo.engine import TokenIds
from tests.fakes import MINILM, FakeEngine
from tests.unit.scheduler.steps import Stage


def texts(*lengths: int) -> list[TokenIds]:
    """Distinct texts of these lengths."""
    return [np.full(length, number) for number, length in enumerate(lengths, 1)]


def test_what_waits_and_what_runs() -> None:
    """Waiting requests, texts and tokens are those that no run has taken; runs are busy workers."""
    engine, other = FakeEngine(), FakeEngine(MINILM)
    model = engine.manifest.id
    with Stage([engine, other], workers=1) as stage:
        names = ("waiting_requests", "waiting_texts")

        def waits(lane: str) -> list[float | None]:
            return [stage.sample(f"matryo_{name}", model=model, lane=lane) for name in names]

        def of(name: str, name_of: str = model) -> float:
            return stage.sample(f"matryo_{name}", model=name_of) or 0.0

        assert waits("query") == waits("bulk") == [0, 0]
        assert (stage.sample("matryo_busy_workers"), of("backlog_seconds")) == (0, 0)
        assert of("busy_seconds_total") == 0  # the first runs are the server's own
        stage.task(stage.scheduler.run(engine, texts(5), 8))
        stage.task(stage.scheduler.run(engine, texts(6, 7), 8))
        stage.task(stage.scheduler.run(engine, texts(8, 9, 10), 8, priority="bulk"))
        assert stage.sample("matryo_workers") == stage.sample("matryo_busy_workers") == 1
        assert waits("query") == [1, 2]
        assert waits("bulk") == [1, 3]
        assert stage.sample("matryo_queue_tokens") == 5 + 13 + 27
        backlog_s = of("backlog_seconds")
        rate = stage.scheduler._queue._rates.of(engine)
        waiting = {3: 13, 4: 27}
        assert backlog_s >= rate.seconds(waiting) > 0
        assert of("backlog_seconds", MINILM.id) == of("oldest_wait_seconds", MINILM.id) == 0

        stage.loop.now += 2
        assert of("oldest_wait_seconds") == 2
        assert of("busy_seconds_total") == 2  # of the run under way
        stage.loop.now += 1
        assert of("busy_seconds_total") == 3
        while stage.executor.runs:
            stage.finish()
        assert waits("query") == waits("bulk") == [0, 0]
        assert (stage.sample("matryo_busy_workers"), of("backlog_seconds")) == (0, 0)
        assert of("oldest_wait_seconds") == of("busy_seconds_total", MINILM.id) == 0
        assert of("speed_tokens_per_second") > 0
