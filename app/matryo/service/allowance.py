"""The limits of a key, and what the key has used of them.

A limit of so much a minute is a bucket of one minute's worth that fills evenly. Whoever finds the
bucket full may use a minute's worth at once. A quota begins anew at midnight UTC.

Source: https://platform.openai.com/docs/guides/rate-limits, headers and errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from matryo.core.errors import (
    ModelForbidden,
    QuotaReached,
    RequestRateReached,
    TokenRateReached,
    TooManyForRate,
)
from matryo.service.ledger import DAY, REQUESTS, TOKENS, Row

_MINUTE_S, _DAY_S = 60.0, 86_400
_EPSILON = 1e-6  # of a token: sums of floats may lack as much


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None for no bound.

    Attributes:
        requests_per_minute: by any door.
        tokens_per_minute: of embedded texts, prefixes and special tokens included.
        tokens_per_day: likewise, from midnight to midnight UTC.
        models: ids of the models that the key may use.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    models: frozenset[str] | None = None


class Allowance:
    """The usage of one key, held against its limits; for the event loop's thread.

    Args:
        name: of the key.
        row: what the key has used.
        on_refusal: called with the reason of each refusal: rate_requests, rate_tokens or quota.
        clock: monotonic seconds, the same for all processes of a machine.
        now: seconds since 1970 UTC.

    Attributes:
        limits: of the key; a reload of the keys replaces them.
    """

    def __init__(
        self,
        name: str,
        row: Row,
        on_refusal: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.limits = KeyLimits()
        self._name, self._row, self._on_refusal = name, row, on_refusal
        self._clock, self._now = clock, now

    def check_model(self, model_id: str) -> None:
        """Refuse a model that the key may not use.

        Raises:
            ModelForbidden: the key has models, and this is none of them.
        """
        models = self.limits.models
        if models is not None and model_id not in models:
            raise ModelForbidden(model_id, key=self._name, allowed=sorted(models))

    def charge_request(self) -> None:
        """Count one request.

        Raises:
            RequestRateReached: the bucket has no request left. Nothing is counted.
        """
        limit = self.limits.requests_per_minute
        if limit is None:
            return
        with self._row.locked():
            used = self._used(REQUESTS, limit)
            if used + 1 <= limit + _EPSILON:
                self._note(REQUESTS, used + 1)
                return
        self._on_refusal("rate_requests")
        raise RequestRateReached(
            key=self._name,
            limit=limit,
            used=round(used),
            requested=1,
            wait_s=_wait_s(used + 1, limit),
        )

    def check_tokens(self) -> None:
        """Refuse a request before its texts are counted, if not one token is left.

        Raises:
            QuotaReached: the day's quota is used up.
            TokenRateReached: the bucket is empty.
        """
        if self.limits.tokens_per_minute is None and self.limits.tokens_per_day is None:
            return
        with self._row.locked():
            self._check_tokens(1)

    def charge_tokens(self, n_tokens: int) -> None:
        """Count the tokens of a request.

        Raises:
            TooManyForRate: the request is larger than the full bucket.
            QuotaReached: the day's quota has not so many left. Nothing is counted.
            TokenRateReached: the bucket has not so many left. Nothing is counted.
        """
        limits = self.limits
        if limits.tokens_per_minute is None and limits.tokens_per_day is None:
            return
        with self._row.locked():
            self._check_tokens(n_tokens)
            self._add_tokens(n_tokens)

    def give_back_tokens(self, n_tokens: int) -> None:
        """Take back the count of tokens that the server did not compute."""
        if self.limits.tokens_per_minute is None and self.limits.tokens_per_day is None:
            return
        with self._row.locked():
            self._add_tokens(-n_tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's headers of what is left now; empty for a key without limits of a minute."""
        found: dict[str, str] = {}
        limits = self.limits
        for what, first, limit in (
            ("requests", REQUESTS, limits.requests_per_minute),
            ("tokens", TOKENS, limits.tokens_per_minute),
        ):
            if limit is None:
                continue
            with self._row.locked():
                used = self._used(first, limit)
            found[f"x-ratelimit-limit-{what}"] = str(limit)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(limit - used + _EPSILON)))
            found[f"x-ratelimit-reset-{what}"] = go_duration(used / limit * _MINUTE_S)
        return found

    def _check_tokens(self, n_tokens: int) -> None:
        """Raise what `charge_tokens` raises; for a caller that holds the lock."""
        limit, quota = self.limits.tokens_per_minute, self.limits.tokens_per_day
        if limit is not None and n_tokens > limit:
            self._on_refusal("rate_tokens")
            raise TooManyForRate(key=self._name, limit=limit, requested=n_tokens)
        if quota is not None and (used := self._used_today()) + n_tokens > quota:
            self._on_refusal("quota")
            raise QuotaReached(
                key=self._name,
                limit=quota,
                used=round(used),
                requested=n_tokens,
                wait_s=_DAY_S - self._now() % _DAY_S,
            )
        if limit is not None:
            used = self._used(TOKENS, limit)
            if used + n_tokens > limit + _EPSILON:
                self._on_refusal("rate_tokens")
                raise TokenRateReached(
                    key=self._name,
                    limit=limit,
                    used=round(used),
                    requested=n_tokens,
                    wait_s=_wait_s(used + n_tokens, limit),
                )

    def _add_tokens(self, n_tokens: int) -> None:
        """Count tokens, or fewer for a negative number."""
        if (limit := self.limits.tokens_per_minute) is not None:
            self._note(TOKENS, max(0.0, self._used(TOKENS, limit) + n_tokens))
        if self.limits.tokens_per_day is not None:
            numbers = self._row.numbers
            used = self._used_today()
            numbers[DAY] = self._now() // _DAY_S
            numbers[DAY + 1] = max(0.0, used + n_tokens)

    def _used(self, first: int, limit: int) -> float:
        """What is used of a bucket that has been filling since the last note."""
        noted, at = self._row.numbers[first], self._row.numbers[first + 1]
        return max(0.0, noted - (self._clock() - at) * limit / _MINUTE_S)

    def _note(self, first: int, used: float) -> None:
        self._row.numbers[first], self._row.numbers[first + 1] = used, self._clock()

    def _used_today(self) -> float:
        day, used = self._row.numbers[DAY], self._row.numbers[DAY + 1]
        return used if day == self._now() // _DAY_S else 0.0


def _wait_s(used: float, limit: int) -> float:
    """Seconds until a bucket has filled so far that `used` fits."""
    return (used - limit) / limit * _MINUTE_S


def go_duration(seconds: float) -> str:
    """A duration as Go writes it, rounded up to milliseconds: `0s`, `12ms`, `8.64s`, `6m0s`."""
    n_ms = math.ceil(round(seconds * 1000, 3))
    if n_ms < 1000:  # noqa: PLR2004 - a second
        return f"{n_ms}ms" if n_ms else "0s"
    minutes, n_ms = divmod(n_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    found = f"{n_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{found}"
    return f"{minutes}m{found}" if minutes else found
