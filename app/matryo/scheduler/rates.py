"""How fast each model runs, and how many tokens a batch may therefore have."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matryo.engine import Engine

# Weight of an observation that is slower, or faster, than the estimate.
_SLOWER, _FASTER = 0.5, 0.1
# A run that took longer than this many times the estimate counts as this many times: one pause of
# the machine must not make requests be refused for a long while.
_MOST_SLOWER = 4
# Weight of all earlier runs in the mean rate, when a run is added.
_KEPT = 0.95
# The fixed cost of a run hides the cost of a token in runs of fewer tokens.
_MIN_TOKENS = 32
_FULL_WEIGHT_TOKENS = 128


Work = dict[int, int]
"""Tokens by the `length_class` of their texts. Its seconds follow the rates."""


def length_class(n_tokens: int) -> int:
    """The class of a text's length: each class has texts twice as long as the one before."""
    return n_tokens.bit_length()


class Rate:
    """Seconds that a run spends on a token, estimated by the longest text of the run.

    Lengths fall into classes, each twice as long as the one before, because attention makes the
    tokens of long texts dearer. A slower run moves the estimate far and a faster run a little: a
    batch that takes too long keeps queries waiting, and one that is too short costs little.

    Args:
        token_s: seconds a token, until a run was observed.

    Attributes:
        n_observed: number of runs that were observed.
    """

    def __init__(self, token_s: float = 0.001) -> None:
        self._default_s = token_s
        self._by_class: dict[int, float] = {}
        self._mean_tokens = self._mean_s = 0.0
        self.n_observed = 0

    def observe(self, longest: int, n_tokens: int, seconds: float) -> None:
        """Learn from a run of `n_tokens` in all, the longest text having `longest`."""
        if not n_tokens or not 0 < seconds < math.inf:
            return  # texts without tokens say nothing about the cost of a token
        self.n_observed += 1
        token_s, kind = seconds / n_tokens, length_class(longest)
        known = self._by_class.get(kind)
        if n_tokens < _MIN_TOKENS:
            # The run's fixed cost makes it look slow, never fast: a short run that is faster than
            # the estimate is right. Else an estimate that refuses all but one request at a time
            # would stay wrong where every request is short.
            if self._by_class and token_s < (estimate := self._of_class(kind)):
                self._by_class[kind] = estimate + _FASTER * (token_s - estimate)
        elif known is None:
            self._by_class[kind] = token_s
        elif token_s < known:
            self._by_class[kind] = known + _FASTER * (token_s - known)
        else:
            weight = _SLOWER * min(1.0, n_tokens / _FULL_WEIGHT_TOKENS)
            self._by_class[kind] = known + weight * (min(token_s, _MOST_SLOWER * known) - known)

    def count(self, n_tokens: int, seconds: float) -> None:
        """Add a run to the mean rate."""
        self._mean_tokens = _KEPT * self._mean_tokens + n_tokens
        self._mean_s = _KEPT * self._mean_s + seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens that one worker computes in a second, in the mean of recent counted runs.

        Before the first of them, the estimate for texts of usual length.
        """
        if self._mean_s > 0:
            return self._mean_tokens / self._mean_s
        return 1 / self.token_s(_FULL_WEIGHT_TOKENS)

    def token_s(self, longest: int) -> float:
        """Seconds a token of a run whose longest text has `longest` tokens.

        A class of lengths that was never observed has the estimate of the nearest class.
        """
        return self._of_class(length_class(longest))

    def seconds(self, work: Work) -> float:
        """Seconds of one worker for some work."""
        spent_s = 0.0
        for kind, n_tokens in work.items():
            if n_tokens:
                spent_s += n_tokens * self._of_class(kind)
        return spent_s

    def _of_class(self, kind: int) -> float:
        known = self._by_class.get(kind)
        if known is not None:
            return known
        if not self._by_class:
            return self._default_s
        return self._by_class[min(self._by_class, key=lambda other: abs(other - kind))]


class Rates:
    """The rate of every model, and the budget of its batches.

    Args:
        engines: every model.
        batch_s: seconds that one batch should take.
    """

    def __init__(self, engines: Iterable[Engine], batch_s: float) -> None:
        self._batch_s = batch_s
        self._rates = {id(engine): Rate() for engine in engines}
        # Each choice of a batch asks for several budgets: by engine and class of length, with the
        # number of runs that had been observed.
        self._budgets: dict[tuple[int, int], tuple[int, int]] = {}

    def of(self, engine: Engine) -> Rate:
        """The rate of one model."""
        return self._rates[id(engine)]

    def budget(self, engine: Engine, longest: int) -> int:
        """Tokens that take a batch's time, within the engine's limits; see `Budget`."""
        rate, kind = self._rates[id(engine)], length_class(longest)
        key = (id(engine), kind)
        known = self._budgets.get(key)
        if known and known[0] == rate.n_observed:
            return known[1]
        n_tokens = int(self._batch_s / rate.token_s(longest))
        limits = engine.limits
        budget = min(max(n_tokens, limits.min_batch_tokens), limits.max_batch_tokens)
        self._budgets[key] = rate.n_observed, budget
        return budget
