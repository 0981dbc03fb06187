"""The SDK's own log lines, a few of them: a collector that is down costs one line a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("matryo.tracing")

PAUSE_S = 60.0
"""Between two lines."""

_THEIRS = logging.getLogger("opentelemetry")


class Warnings(logging.Handler):
    """Takes the lines of the SDK's loggers, and passes one on at a time.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._quiet_until = clock()
        self._n_left_out = 0
        self._propagated = _THEIRS.propagate
        _THEIRS.propagate = False
        _THEIRS.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, or count the line."""
        if self._clock() < self._quiet_until:
            self._n_left_out += 1
            return
        self._quiet_until = self._clock() + PAUSE_S
        left_out, self._n_left_out = self._n_left_out, 0
        log.warning(
            "spans or metrics are not exported: %s",
            record.getMessage(),
            extra={"left_out": left_out or None},
        )

    def close(self) -> None:
        """Leave the SDK's loggers as they were."""
        _THEIRS.removeHandler(self)
        _THEIRS.propagate = self._propagated
        super().close()
