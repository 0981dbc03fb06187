"""Limits of a key: buckets that fill evenly, a quota of the day, and headers that are true."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from matryo.core.errors import (
    LimitReached,
    QuotaReached,
    RequestRateReached,
    TokenRateReached,
    TooManyForRate,
)
from matryo.service.allowance import Allowance, KeyLimits, go_duration
from matryo.service.ledger import Ledger, Row

MIDNIGHT = 86_400.0 * 20_000


class Clocked:
    """An allowance with clocks that a test moves."""

    def __init__(self, **limits: Any) -> None:
        self.s = 1000.0
        self.refusals: list[str] = []
        self.allowance = Allowance(
            "a", Row(), self.refusals.append, lambda: self.s, lambda: MIDNIGHT + self.s
        )
        self.allowance.limits = KeyLimits(**limits)

    def refused(self, call: Callable[[], None], kind: type[LimitReached]) -> LimitReached:
        """The error of a call."""
        with pytest.raises(kind) as caught:
            call()
        return caught.value

    def use(self, n_tokens: int) -> Callable[[], None]:
        """A call that charges tokens."""
        return lambda: self.allowance.charge_tokens(n_tokens)


@pytest.mark.parametrize("limit", [1, 3, 7, 600, 1_000_003])
def test_retry_after_is_true(limit: int) -> None:
    """A burst of a minute's worth passes; then the next passes after the wait and no sooner."""
    clocked = Clocked(requests_per_minute=limit)
    charge = clocked.allowance.charge_request
    for _ in range(min(limit, 1000)):
        charge()
    if limit > 1000:
        clocked.allowance._note(0, limit)  # pyright: ignore[reportPrivateUsage] - as many requests would take long
    error = clocked.refused(charge, RequestRateReached)
    wait_ms = error.retry_after_ms
    assert wait_ms is not None
    assert wait_ms <= 60_000
    assert error.retry_after_s == max(1, -(-wait_ms // 1000))
    clocked.s += max(0, wait_ms / 1000 - 0.002)
    if wait_ms > 2:
        clocked.refused(charge, RequestRateReached)
    clocked.s += 0.002
    charge()


def test_refusal_costs_nothing() -> None:
    """A caller that knocks on does not wait longer for it."""
    clocked = Clocked(requests_per_minute=1)
    clocked.allowance.charge_request()
    for _ in range(100):
        clocked.refused(clocked.allowance.charge_request, RequestRateReached)
    clocked.s += 60
    clocked.allowance.charge_request()
    assert clocked.refusals == ["rate_requests"] * 100


def test_message() -> None:
    """The words are OpenAI's: what, limit, used, requested, and when to try again."""
    clocked = Clocked(tokens_per_minute=100)
    clocked.allowance.charge_tokens(90)
    error = clocked.refused(clocked.use(40), TokenRateReached)
    assert error.message == (
        "Rate limit reached for API key `a` on tokens per min (TPM): Limit 100, Used 90, "
        "Requested 40. Please try again in 18s."
    )
    assert error.code == "rate_limit_exceeded"


def test_tokens() -> None:
    """Tokens refill evenly, and those that were not computed come back."""
    clocked = Clocked(tokens_per_minute=600)
    clocked.allowance.charge_tokens(600)
    clocked.refused(clocked.allowance.check_tokens, TokenRateReached)
    clocked.s += 1
    clocked.allowance.check_tokens()
    clocked.allowance.charge_tokens(10)
    clocked.allowance.give_back_tokens(300)
    clocked.allowance.charge_tokens(300)
    clocked.refused(clocked.use(1), TokenRateReached)


def test_too_large() -> None:
    """A request over the whole bucket can never pass: no time to wait is given."""
    clocked = Clocked(tokens_per_minute=600)
    error = clocked.refused(clocked.use(601), TooManyForRate)
    assert "Request too large" in error.message
    assert (error.retry_after_ms, error.is_worth_retrying) == (None, False)
    clocked.allowance.charge_tokens(600)


def test_quota() -> None:
    """A quota ends at midnight UTC, which is what the error says; nobody retries until then."""
    clocked = Clocked(tokens_per_day=1000)
    clocked.allowance.charge_tokens(900)
    error = clocked.refused(clocked.use(101), QuotaReached)
    assert error.code == "insufficient_quota"
    assert error.retry_after_ms == (86_400 - 1000) * 1000
    assert not error.is_worth_retrying
    clocked.allowance.charge_tokens(100)
    clocked.refused(clocked.allowance.check_tokens, QuotaReached)
    clocked.s += 86_400 - 1000
    clocked.allowance.charge_tokens(1000)
    assert clocked.refusals == ["quota", "quota"]


def test_headers() -> None:
    """Headers say what is left and when all of it is left again, of the limits that the key has."""
    clocked = Clocked(requests_per_minute=600, tokens_per_minute=6000)
    clocked.allowance.charge_request()
    clocked.allowance.charge_tokens(600)
    assert clocked.allowance.headers() == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5400",
        "x-ratelimit-reset-tokens": "6s",
    }
    clocked.s += 60
    assert clocked.allowance.headers()["x-ratelimit-remaining-requests"] == "600"
    assert clocked.allowance.headers()["x-ratelimit-reset-tokens"] == "0s"
    assert not Clocked(tokens_per_day=5).allowance.headers()


def test_lower_limit() -> None:
    """A limit that a reload lowers leaves nothing over, and not less than nothing."""
    clocked = Clocked(tokens_per_minute=1000)
    clocked.allowance.charge_tokens(900)
    clocked.allowance.limits = KeyLimits(tokens_per_minute=100)
    assert clocked.allowance.headers()["x-ratelimit-remaining-tokens"] == "0"
    clocked.refused(clocked.use(1), TokenRateReached)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m1.5s"),
        (3600, "1h0m0s"),
        (86_399.5, "23h59m59.5s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations are written as Go writes them, which clients of OpenAI parse."""
    assert go_duration(seconds) == text


def _charge(folder: Path, n: int, start: Barrier, passed: Queue[int]) -> None:
    """Count how many of `n` tokens pass, in a process of its own."""
    allowance = Allowance("a", Ledger(folder).row("a"), lambda _: None, now=lambda: MIDNIGHT)
    allowance.limits = KeyLimits(tokens_per_day=30_000)
    start.wait(60)
    n_passed = 0
    for _ in range(n):
        with suppress(QuotaReached):
            allowance.charge_tokens(1)
            n_passed += 1
    passed.put(n_passed)


def test_processes_share_limits(tmp_path: Path) -> None:
    """The processes of one server hold one limit together, exactly."""
    context = multiprocessing.get_context("spawn")
    start, passed = context.Barrier(2), context.Queue()
    args = (tmp_path, 20_000, start, passed)
    processes = [context.Process(target=_charge, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    n_passed = [passed.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(n_passed) == 30_000
    assert Ledger(tmp_path).row("b").numbers.tolist() == [0.0] * 6
