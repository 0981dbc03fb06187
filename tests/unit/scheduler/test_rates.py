"""The running estimate of a model's speed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from matryo.scheduler.rates import Rate


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
    """The estimate never leaves the range of what was observed."""
    rate = Rate(0.001)
    for longest, token_s in runs:
        rate.observe(longest, longest, token_s * longest)
    seen = [token_s for longest, token_s in runs if longest >= 32] or [0.001]
    for longest in (1, 40, 300, 8192):
        assert min(seen) * 0.999 <= rate.token_s(longest) <= max(seen) * 1.001
