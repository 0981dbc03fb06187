"""The running estimate of a model's speed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.scheduler.rates import Rate, length_class


def test_by_length() -> None:
    """Long texts are dearer; a length that was never run is taken for its nearest."""
    rate = Rate()
    rate.observe(100, 200, 0.2)
    rate.observe(5000, 5000, 10.0)
    assert rate.token_s(120) == rate.token_s(10) == 0.001
    assert rate.token_s(8192) == 0.002


def test_slowdowns_are_believed_first() -> None:
    """One slow run moves the estimate half way, one fast run a tenth."""
    rate = Rate()
    rate.observe(100, 128, 0.128)
    rate.observe(100, 128, 0.256)
    assert abs(rate.token_s(100) - 0.0015) < 1e-12
    rate.observe(100, 128, 0.064)
    assert abs(rate.token_s(100) - 0.0014) < 1e-12


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(1e-5, 1e-2)), min_size=1, max_size=50))
def test_stays_within_what_was_seen(runs: list[tuple[int, float]]) -> None:
    """The estimate never leaves the range of what was observed, once a run was long enough."""
    rate = Rate(0.001)
    for longest, token_s in runs:
        rate.observe(longest, longest, token_s * longest)
    is_taught = any(longest >= 32 for longest, _ in runs)
    seen = [token_s for _, token_s in runs] if is_taught else [0.001]
    for longest in (1, 40, 300, 8192):
        assert min(seen) * 0.999 <= rate.token_s(longest) <= max(seen) * 1.001


def test_a_pause_of_the_machine_is_forgotten() -> None:
    """One run that stood still for minutes slows the estimate 2.5 times, not thousands of times."""
    rate = Rate()
    rate.observe(100, 128, 0.128)
    rate.observe(100, 128, 300.0)
    assert abs(rate.token_s(100) - 0.0025) < 1e-12


def test_short_runs_correct_an_estimate_that_is_too_slow() -> None:
    """A run of few tokens looks slow by its fixed cost: it can lower the estimate, never raise it."""
    rate = Rate()
    rate.observe(8, 8, 0.0001)
    assert rate.token_s(8) == 0.001  # until a run was long enough, nothing is known
    rate.observe(100, 128, 128.0)
    for _ in range(100):
        rate.observe(8, 8, 0.008)
    assert rate.token_s(8) < 0.002
    rate.observe(8, 8, 8.0)
    assert rate.token_s(8) < 0.002


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_no_time_teaches_nothing(seconds: float) -> None:
    """A run whose time is no time leaves the estimate as it was."""
    rate = Rate()
    rate.observe(100, 128, 0.128)
    rate.observe(100, 128, seconds)
    assert rate.token_s(100) == 0.001


def test_seconds_of_work() -> None:
    """Work is priced class by class."""
    rate = Rate()
    rate.observe(100, 128, 0.128)
    rate.observe(1000, 1000, 2.0)
    assert abs(rate.seconds({length_class(100): 200, length_class(600): 600}) - 1.4) < 1e-9


def test_texts_without_tokens_teach_nothing() -> None:
    """A run without a token leaves the estimate as it is."""
    rate = Rate()
    rate.observe(0, 0, 0.1)
    assert rate.token_s(8) == 0.001
    assert rate.n_observed == 0
