"""The byte budget: what leases hold adds up, and never passes the limit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.budget import Budget, Owner
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


def test_nobody_takes_all_of_a_shared_budget() -> None:
    """The last quarter is for owners that hold less than their share, by their weights."""
    budget = Budget(1000)
    greedy, polite = Owner("greedy"), Owner("polite", 3.0)
    held = budget.lease(greedy)
    held.grow(750)
    with pytest.raises(Overloaded):
        held.grow(1)
    budget.lease(polite).grow(200)
    with pytest.raises(Overloaded):
        budget.lease(Owner("third", 0.01)).grow(10)
    budget.lease(Owner("third", 1.0)).grow(50)
    with pytest.raises(Overloaded):
        budget.lease(polite).grow(1)  # there is no byte left


def test_a_share_follows_what_others_hold() -> None:
    """An owner that is alone leaves room, and gets it back when nobody else holds anything."""
    budget = Budget(1000)
    greedy, polite = budget.lease(Owner("greedy")), budget.lease(Owner("polite"))
    greedy.grow(400)
    polite.grow(400)
    greedy.grow(100)  # half of all
    with pytest.raises(Overloaded):
        greedy.grow(1)
    polite.end()
    greedy.grow(250)
    greedy.end()
    assert budget.held == 0
    assert not budget._held_by


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400), st.booleans()), max_size=60))
def test_sums_of_owners_are_right(steps: list[tuple[int, int, bool]]) -> None:
    """After any steps the budget holds what each owner's leases hold, and forgets who has nothing."""
    budget = Budget(1000)
    owners = [Owner("a"), Owner("b", 2.0), Owner("c")]
    leases = [(owners[n % 3], budget.lease(owners[n % 3])) for n in range(6)]
    for which, n_bytes, grows in steps:
        lease = leases[which][1]
        if grows:
            with contextlib.suppress(Overloaded):
                lease.grow(n_bytes)
        else:
            lease.shrink(n_bytes)
        for owner in owners:
            held = sum(one.held for mine, one in leases if mine is owner)
            assert budget._held_by.get(owner, 0) == held
        assert budget.held == sum(budget._held_by.values()) <= 1000
        assert all(budget._held_by.values())
