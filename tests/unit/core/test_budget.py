"""The byte budget: what leases hold adds up, and never passes the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.budget import Budget
from matryo.core.errors import Overloaded


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("gse"), st.integers(0, 200))))
def test_the_sum_is_right(steps: list[tuple[int, str, int]]) -> None:
    """After any steps the budget holds the sum of its leases, within the limit."""
    refused: list[None] = []
    budget = Budget(300, lambda: refused.append(None))
    leases = [budget.lease() for _ in range(4)]
    for which, step, n_bytes in steps:
        lease, before = leases[which], leases[which].held
        match step:
            case "g":
                fits = budget.held + n_bytes <= 300
                if fits:
                    lease.grow(n_bytes)
                else:
                    n_refused = len(refused)
                    with pytest.raises(Overloaded):
                        lease.grow(n_bytes)
                    assert len(refused) == n_refused + 1
                assert lease.held == before + n_bytes * fits
            case "s":
                lease.shrink(n_bytes)
            case _:
                lease.end()
        assert budget.held == sum(one.held for one in leases) <= 300
    for lease in leases:
        with lease:
            pass
    assert budget.held == 0


def test_no_limit() -> None:
    """A budget without a limit counts and refuses nothing."""
    budget = Budget()
    budget.lease().grow(10**15)
    assert budget.held == 10**15
