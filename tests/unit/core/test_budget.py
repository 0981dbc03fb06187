"""The byte budget: what leases hold adds up, and never passes the limit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.budget import Budget, Holder
from matryo.core.errors import Overloaded
from matryo.core.metric_list import HOLDERS


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from("ghe"),
            st.integers(0, 200),
            st.sampled_from(HOLDERS),
        )
    )
)
def test_the_sum_is_right(steps: list[tuple[int, str, int, Holder]]) -> None:
    """After any steps the budget holds the sum of its leases, within the limit, for each holder."""
    refused: list[None] = []
    budget = Budget(300, lambda: refused.append(None))
    leases = [budget.lease() for _ in range(4)]
    parts: list[dict[Holder, int]] = [{} for _ in leases]
    for which, step, n_bytes, holder in steps:
        lease, part = leases[which], parts[which]
        given_back = lease.held if step == "h" else 0
        fits = step == "e" or budget.held - given_back + n_bytes <= 300
        n_refused = len(refused)
        with contextlib.nullcontext() if fits else pytest.raises(Overloaded):
            match step:
                case "g":
                    lease.grow(n_bytes, holder)
                case "h":
                    lease.hold(n_bytes, holder)
                case _:
                    lease.end()
        assert len(refused) == n_refused + (not fits)
        if fits and step == "g":
            part[holder] = part.get(holder, 0) + n_bytes
        elif fits:
            parts[which] = {holder: n_bytes} if step == "h" else {}
        assert [one.held for one in leases] == [sum(one.values()) for one in parts]
        assert budget.held == sum(one.held for one in leases) <= 300
        for name in HOLDERS:
            assert budget.by_holder[name] == sum(one.get(name, 0) for one in parts)
    for lease in leases:
        with lease:
            pass
    assert budget.held == 0
    assert not any(budget.by_holder.values())


def test_no_limit() -> None:
    """A budget without a limit counts and refuses nothing."""
    budget = Budget()
    budget.lease().grow(10**15, "body")
    assert budget.held == 10**15
