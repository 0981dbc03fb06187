"""The ordered queue: the policy's choices are those of a look at every request, without that look."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from matryo.core.metrics import Metrics
from matryo.engine import Engine
from matryo.scheduler.accounts import Account
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import ANYONE, Priority, Tenant, Ticket
from matryo.scheduler.policy import MAX_MISSES, classify, next_batch
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Choice
from matryo.scheduler.waiting import Waiting
from tests.fakes import MINILM, FakeEngine
from tests.unit.scheduler.linear import linear_batch

CONFIG = SchedulerConfig(starve_s=1.0)
ENGINES = (FakeEngine(), FakeEngine(MINILM))
FEW, MANY = 500, 5000


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Tickets make a future, which wants a loop at hand."""
    with asyncio.Runner() as runner:
        asyncio._set_running_loop(runner.get_loop())
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


def ticket(
    lengths: list[int],
    now: float = 0.0,
    engine: Engine = ENGINES[0],
    priority: Priority = "online",
    tenant: Tenant = ANYONE,
) -> Ticket:
    """A request of distinct texts of these lengths."""
    texts = [np.full(length, index, np.int64) for index, length in enumerate(lengths)]
    return Ticket(engine, texts, 8, now, priority, tenant=tenant)


small = st.lists(st.integers(1, 90), min_size=1, max_size=3)
any_size = st.lists(st.integers(1, 700), min_size=1, max_size=12)
one_text = st.integers(1, 300).map(lambda length: [length])
tenants = st.sampled_from([ANYONE, Tenant("a"), Tenant("b", 0.2), Tenant("c", 3.0)])
requests = st.tuples(
    st.one_of(small, small, any_size),
    st.integers(0, 1),
    st.sampled_from(get_args(Priority)),
    tenants,
)
budgets = st.lists(st.integers(64, 1024), min_size=10, max_size=10)
"""Tokens of a batch by the class of its longest text, as measured rates may make them."""


def choose_on_and_on(
    tickets: list[Ticket],
    per_class: list[int],
    gaps: list[float],
    *,
    long_allowed: bool,
    gap_s: float = math.inf,
    yields: bool = False,
    is_idle: bool = False,
) -> None:
    """Take batch after batch, and hold each against the linear policy; some callers leave."""

    def budget(_: Engine, longest: int) -> int:
        return per_class[min(longest.bit_length(), 10) - 1]

    before: list[Account] = []
    waiting, now, since = Waiting(CONFIG.workers, CONFIG.recent_s), 10.0, 9.5
    for each in tickets:
        classify(each, budget)
        waiting.add(each)
    for gap in gaps:
        now += gap
        facts: dict[str, Any] = {
            "now": now,
            "bulk_since": since,
            "long_allowed": long_allowed,
            "before": before,
            "gap_s": gap_s,
            "yields": yields,
            "is_idle": is_idle,
        }
        alive = [each for each in tickets if each.live]
        batch = next_batch(waiting, budget, CONFIG, **facts)
        assert batch == linear_batch(alive, waiting.accounts, budget, CONFIG, **facts)
        owners = dict.fromkeys(job.ticket for job in batch)
        accounts = waiting.accounts
        if batch:
            leader = accounts.open(batch[0].ticket.tenant, now)
            before = [] if leader.is_guest else [leader]
            accounts.lead(leader)
        for owner in owners:
            jobs = [job for job in batch if job.ticket is owner]
            waiting.remove(owner)
            owner.take(jobs, now)
            spent_s = 0.004 * sum(job.n_tokens for job in jobs)
            accounts.charge(accounts.open(owner.tenant, now), spent_s, now, CONFIG.starve_s)
            if owner.pending:
                waiting.add(owner)
        if any(owner.bulk for owner in owners):
            since = now
        if tickets and gap > 0.4:
            gone = tickets.pop(int(gap * 100) % len(tickets))
            gone.future.cancel()
            waiting.remove(gone)
        if tickets and gap > 0.5:  # this one is on its way out
            tickets[int(gap * 100) % len(tickets)].future.cancel()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(requests, max_size=MAX_MISSES),
    budgets,
    st.lists(st.floats(0, 0.6), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([0.01, 0.5, math.inf]),
    st.booleans(),
    st.booleans(),
)
def test_the_choice_of_a_look_at_every_request(
    asked: list[tuple[list[int], int, Priority, Tenant]],
    per_class: list[int],
    gaps: list[float],
    long_allowed: bool,
    gap_s: float,
    yields: bool,
    is_idle: bool,
) -> None:
    """Whatever waits, comes to an end or leaves, the batch has the same jobs in the same order."""
    tickets = [
        ticket(lengths, index * 0.3, ENGINES[kind], priority, tenant)
        for index, (lengths, kind, priority, tenant) in enumerate(asked)
    ]
    choose_on_and_on(
        tickets,
        per_class,
        gaps,
        long_allowed=long_allowed,
        gap_s=gap_s,
        yields=yields,
        is_idle=is_idle,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(one_text, min_size=MAX_MISSES, max_size=8 * MAX_MISSES),
    st.integers(64, 1024),
    st.lists(st.floats(0, 0.6), min_size=1, max_size=6),
)
def test_many_single_texts(asked: list[list[int]], tokens: int, gaps: list[float]) -> None:
    """Among requests of one text, however many, giving up after some misses changes no choice."""
    tickets = [ticket(lengths, index * 0.01) for index, lengths in enumerate(asked)]
    choose_on_and_on(tickets, [tokens] * 10, gaps, long_allowed=True)


class TestCost:
    """What the scheduler does for a request does not grow with the requests that wait."""

    @pytest.mark.parametrize(
        "shape", ["one", "equal", "pairs", "with a giant", "bulk", "a tenant each"]
    )
    def test_arrival_choice_and_leaving(self, shape: str) -> None:
        """Ten times the requests cost at most a few binary searches more."""
        few, many = costs(FEW, shape), costs(MANY, shape)
        for step, n_lines in many.items():
            assert n_lines < 1.5 * few[step] + 20, (step, few, many)

    def test_callers_that_leave_together(self) -> None:
        """A choice passes over callers on their way out, which their own leaving then removes."""
        queue, rng = Queue(Rates(ENGINES, 0.2), CONFIG, METRICS, lambda: 0.0), shapes("one")
        tickets = [next(rng) for _ in range(FEW)]
        for each in tickets:
            queue.add(each)
        for each in tickets[1:]:
            each.future.cancel()
        assert {job.ticket for job in choose(queue)} == {tickets[0]}
        for each in tickets:
            queue.remove(each)
        assert (len(queue), queue.admission.n_tokens, choose(queue)) == (0, 0, [])


METRICS = Metrics(CollectorRegistry())


def shapes(shape: str) -> Iterator[Ticket]:
    """Requests without end, nearly all of them small."""
    rng = np.random.default_rng(0)
    number = 0
    while True:
        number += 1
        match shape:
            case "equal":
                yield ticket([12])
            case "pairs":  # a long and a short text: few of the short ones fit, and none is found
                yield ticket([int(rng.integers(50, 60)), int(rng.integers(20, 30))])
            case "with a giant" if number == 1:
                yield ticket([90], now=-10.0)
            case "a tenant each":
                yield ticket([int(rng.integers(4, 60))], tenant=Tenant(f"key-{number}"))
            case "bulk":
                yield ticket([int(rng.integers(4, 60))], priority="bulk")
            case _:
                yield ticket([int(rng.integers(4, 60))])


def choose(queue: Queue) -> list[Any]:
    """The next batch."""
    budget = Rates(ENGINES, 0.2).budget
    return next_batch(queue.waiting, budget, CONFIG, now=0.0, bulk_since=0.0)


def costs(n_waiting: int, shape: str) -> dict[str, int]:
    """Lines of Python that each step runs with so many requests waiting."""
    config = SchedulerConfig(queue_tokens=10**9, max_requests=10**6, max_wait_s=1e6)
    queue, made = Queue(Rates(ENGINES, 0.2), config, METRICS, lambda: 0.0), shapes(shape)
    for _ in range(n_waiting):
        queue.add(next(made))
    new, other = next(made), next(made)
    queue.add(other)
    n_lines = {
        "check": lines_of(lambda: queue.admission.check(new)),
        "check_room": lines_of(queue.admission.check_room),
        "add": lines_of(lambda: queue.add(new)),
        "leave": lines_of(lambda: queue.remove(other)),
        "choose": lines_of(lambda: choose(queue)),
    }
    batch = choose(queue)
    assert batch
    n_lines["take"] = lines_of(lambda: queue.take(Choice(batch), 0.0))
    return n_lines


def lines_of(work: Callable[[], Any]) -> int:
    """Lines of Python that `work` runs, calls, loops and key functions included."""
    n_lines, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_lines
        del frame, argument
        n_lines += event in ("line", "call")
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return n_lines
