"""How often requests come, of late."""

from __future__ import annotations

import math


class Arrivals:
    """Counts requests, each of which fades.

    Args:
        recent_s: seconds after which a request counts for a third.
    """

    def __init__(self, recent_s: float) -> None:
        self._recent_s = recent_s
        self._n = 0.0
        self._last = -math.inf

    def count(self, now: float) -> None:
        """Count a request that comes at `now`, on the clock in seconds."""
        self._n = self._faded(now) + 1.0
        self._last = now

    def gap_s(self, now: float) -> float:
        """Seconds between two requests, on average; infinite if none came for `recent_s`."""
        if now - self._last > self._recent_s:
            return math.inf
        return self._recent_s / self._faded(now)

    def _faded(self, now: float) -> float:
        return self._n * math.exp((self._last - now) / self._recent_s) if self._n else 0.0
