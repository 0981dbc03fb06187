"""Whether every model runs: what readiness says, and which model the heartbeat must run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matryo.engine import Engine


@dataclass(slots=True)
class _Record:
    """What is known of one model.

    Attributes:
        last_success: the clock at the end of the last good run; None before the first.
        suspect: whether a run failed since then.
        failed: whether the model then failed a probe too.
    """

    last_success: float | None = None
    suspect: bool = False
    failed: bool = False


class Health:
    """The last run of every model.

    Args:
        engines: every model.
        ready_interval_s: a model is ready if it ran within this many seconds.
        clock: monotonic seconds.

    Attributes:
        pause_s: a model that did not run for this many seconds is due for a run.
    """

    def __init__(
        self, engines: Sequence[Engine], ready_interval_s: float, clock: Callable[[], float]
    ) -> None:
        self._engines = engines
        self._interval_s = ready_interval_s
        self._clock = clock
        self._records = {id(engine): _Record() for engine in engines}
        self.pause_s = ready_interval_s / 3

    def succeeded(self, engine: Engine) -> None:
        """Note that a run ended well just now."""
        record = self._records[id(engine)]
        record.last_success = self._clock()
        record.suspect = record.failed = False

    def suspect(self, engine: Engine) -> None:
        """Note that a run failed: by the fault of a text, unless a probe of the model fails too."""
        self._records[id(engine)].suspect = True

    def failed(self, *engines: Engine) -> None:
        """Note that a probe of these models failed; every model is meant, if none is given."""
        for engine in engines or self._engines:
            self._records[id(engine)].failed = True

    def why_not_ready(self, *engines: Engine) -> str | None:
        """None if these models ran well within the interval; else a sentence for the operator.

        Every model is meant, if none is given.
        """
        now = self._clock()
        for engine in engines or self._engines:
            record, name = self._records[id(engine)], engine.manifest.id
            if record.last_success is None:
                return f"{name} has not run yet"
            if record.failed:
                return f"the last run of {name} failed"
            if (age := now - record.last_success) > self._interval_s:
                return f"{name} last ran {age:.0f} s ago"
        return None

    def due(self) -> list[Engine]:
        """The models that need a run: their last run failed, or was too long ago."""
        now = self._clock()
        return [
            engine
            for engine in self._engines
            if (record := self._records[id(engine)]).suspect
            or record.failed
            or record.last_success is None
            or now - record.last_success >= self.pause_s
        ]
