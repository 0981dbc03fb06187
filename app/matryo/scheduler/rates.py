"""How fast a model runs: a running estimate by the length of texts."""

from __future__ import annotations

_SLOWER, _FASTER = 0.5, 0.1
# Below this, a run's fixed cost hides the cost of a token.
_MIN_TOKENS = 32
_FULL_WEIGHT_TOKENS = 128


class Rate:
    """Seconds that one run spends on a token, by the longest text of the run.

    Lengths fall into classes, each twice as long as the one before: attention makes tokens
    of long texts dearer. A slowdown is believed at once and a recovery slowly, because a
    batch that takes too long keeps queries waiting, and one that is too short costs little.

    Args:
        token_s: seconds a token, until something was observed.
    """

    def __init__(self, token_s: float = 0.001) -> None:
        self._default_s = token_s
        self._by_class: dict[int, float] = {}

    def observe(self, longest: int, n_tokens: int, seconds: float) -> None:
        """Learn from a run of `n_tokens`, the longest text `longest` of them."""
        if n_tokens < _MIN_TOKENS or seconds <= 0:
            return
        token_s, kind = seconds / n_tokens, longest.bit_length()
        known = self._by_class.get(kind)
        if known is None:
            self._by_class[kind] = token_s
            return
        weight = _SLOWER if token_s > known else _FASTER
        weight *= min(1.0, n_tokens / _FULL_WEIGHT_TOKENS)
        self._by_class[kind] = known + weight * (token_s - known)

    def token_s(self, longest: int) -> float:
        """Seconds a token, of runs whose longest text has `longest` tokens."""
        if not self._by_class:
            return self._default_s
        kind = longest.bit_length()
        return self._by_class[min(self._by_class, key=lambda known: abs(known - kind))]
