"""The seconds that the steps of a server's start take."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager


class Steps:
    """Seconds by step. A step inside another one does not count in the outer one.

    Attributes:
        seconds: by the name of the step: `pull`, `build` or `load`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, step: str) -> Generator[None, None, None]:
        """Count the time of the block for a step, without that of the steps inside."""
        begun, inside = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            spent_s = time.monotonic() - begun - (sum(self.seconds.values()) - inside)
            self.add({step: max(0.0, spent_s)})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for step, spent_s in seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + spent_s
