"""The byte budget: what leases hold adds up, and never passes the limit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.budget import Budget, Holder, Owner
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


def test_nobody_takes_all_of_a_shared_budget() -> None:
    """The last quarter is for owners that hold less than their share, by their weights."""
    budget = Budget(1000)
    greedy, polite = Owner("greedy"), Owner("polite", 3.0)
    held = budget.lease(greedy)
    held.grow(750, "body")
    with pytest.raises(Overloaded):
        held.grow(1, "body")
    budget.lease(polite).grow(200, "body")
    with pytest.raises(Overloaded):
        budget.lease(Owner("third", 0.01)).grow(10, "body")
    budget.lease(Owner("third", 1.0)).grow(50, "body")
    with pytest.raises(Overloaded):
        budget.lease(polite).grow(1, "body")  # there is no byte left


def test_a_share_follows_what_others_hold() -> None:
    """An owner that is alone leaves room, and gets it back when nobody else holds anything."""
    budget = Budget(1000)
    greedy, polite = budget.lease(Owner("greedy")), budget.lease(Owner("polite"))
    greedy.grow(400, "texts")
    polite.grow(400, "texts")
    greedy.grow(100, "texts")  # half of all
    with pytest.raises(Overloaded):
        greedy.grow(1, "texts")
    polite.end()
    greedy.grow(250, "texts")
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
                lease.grow(n_bytes, "vectors")
        else:
            lease.end()
        for owner in owners:
            held = sum(one.held for mine, one in leases if mine is owner)
            assert budget._held_by.get(owner, 0) == held
        assert budget.held == sum(budget._held_by.values()) <= 1000
        assert all(budget._held_by.values())
