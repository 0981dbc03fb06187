"""The policy as a pure function: nothing lost, nothing starved, budgets kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine import Engine
from app.scheduler.jobs import Job, Ticket
from app.scheduler.policy import BatchLimits, next_batch
from tests.fakes import MINILM, FakeEngine

LIMITS = BatchLimits(max_tokens=200, max_padding=0.1, free_padding=16, solo_tokens=512)
ENGINES = (FakeEngine(), FakeEngine(MINILM))


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Tickets make a future, which wants a loop at hand."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        asyncio._set_running_loop(loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


def ticket(lengths: Sequence[int], now: float = 0.0, engine: Engine = ENGINES[0]) -> Ticket:
    """A request of texts of these lengths."""
    return Ticket(engine, [np.zeros(length, np.int64) for length in lengths], 8, now)


def pick(tickets: Sequence[Ticket], now: float = 0.0, limits: BatchLimits = LIMITS) -> list[Job]:
    """The policy under the test's limits."""
    return next_batch(tickets, lambda _: limits, max_wait_s=1.0, now=now)


def check(batch: Sequence[Job], limits: BatchLimits = LIMITS) -> None:
    """What holds for every batch."""
    width = max(job.n_tokens for job in batch)
    padded = width * len(batch)
    assert len({id(job) for job in batch}) == len(batch)
    assert len({job.ticket.engine for job in batch}) == 1
    assert len(batch) == 1 or padded <= limits.max_tokens
    assert padded - sum(job.n_tokens for job in batch) <= limits.padding(padded)
    assert len(batch) == 1 or width <= limits.solo_tokens


lengths = st.lists(st.integers(1, 700), min_size=1, max_size=20)


@given(st.lists(st.tuples(lengths, st.integers(0, 1), st.floats(0, 5)), max_size=8))
def test_everything_runs_once_within_bounds(
    requests: list[tuple[list[int], int, float]],
) -> None:
    """Whatever waits, taking batch after batch runs each job once, each batch in bounds."""
    tickets = [ticket(texts, now, ENGINES[kind]) for texts, kind, now in requests]
    waiting = {id(job) for ticket in tickets for job in ticket.pending}
    now = 5.0
    while batch := pick(tickets, now):
        check(batch)
        for job in batch:
            waiting.remove(id(job))
        for owner in {job.ticket for job in batch}:
            owner.take([job for job in batch if job.ticket is owner], now)
        now += 0.1
    assert not waiting
    assert all(ticket.pending_tokens == 0 for ticket in tickets)


@given(st.lists(st.tuples(lengths, st.floats(0, 3)), min_size=1, max_size=8), st.floats(3, 6))
def test_it_changes_nothing(requests: list[tuple[list[int], float]], now: float) -> None:
    """Asked twice, the policy answers the same, and what waits still waits."""
    tickets = [ticket(texts, arrived) for texts, arrived in requests]
    before = [list(t.pending) for t in tickets]
    assert pick(tickets, now) == pick(tickets, now)
    assert [t.pending for t in tickets] == before


def test_a_query_passes_bulk() -> None:
    """A small request leads, however long a large one waits in front of it."""
    bulk, query = ticket([90] * 50, now=0.0), ticket([10], now=0.5)
    assert pick([bulk, query], now=0.6)[0].ticket is query


def test_bulk_does_not_starve() -> None:
    """A request that had nothing taken for max_wait_s leads before any small one."""
    bulk, query = ticket([90] * 50, now=0.0), ticket([10], now=0.9)
    assert pick([bulk, query], now=1.0)[0].ticket is bulk
    bulk.take(pick([bulk, query], now=1.0), 1.0)
    assert pick([bulk, query], now=1.1)[0].ticket is query


@given(st.integers(1, 30))
def test_bulk_progresses_under_a_flood(n_queries: int) -> None:
    """With a fresh query at every step, a bulk request still gets a batch every second."""
    bulk = ticket([50] * 200, now=0.0)
    now, served = 0.0, [0.0]
    while now < 6.0:
        queries = [ticket([10], now=now) for _ in range(n_queries)]
        batch = pick([bulk, *queries], now)
        mine = [job for job in batch if job.ticket is bulk]
        if mine:
            bulk.take(mine, now)
            served.append(now)
        now += 0.25
    assert max(later - earlier for earlier, later in itertools.pairwise(served)) <= 1.25


def test_requests_share_a_batch() -> None:
    """Texts of like length run together, whoever sent them."""
    first, second = ticket([20, 21]), ticket([20, 22, 90])
    assert {job.n_tokens for job in pick([first, second])} == {20, 21}
    assert len(pick([first, second])) == 3


def test_other_models_do_not_mix() -> None:
    """A batch has one model."""
    batch = pick([ticket([20]), ticket([20], engine=ENGINES[1])])
    assert len(batch) == 1


def test_long_texts_run_alone() -> None:
    """Over solo_tokens there is no company, even of equals."""
    limits = BatchLimits(max_tokens=10_000, solo_tokens=512)
    assert len(pick([ticket([600, 600, 10])], limits=limits)) == 1
    assert len(pick([ticket([512, 512])], limits=limits)) == 2


def test_a_text_over_the_budget_still_runs() -> None:
    """The budget bounds company, not a single text."""
    assert [job.n_tokens for job in pick([ticket([400, 3])])] == [400]


def test_nothing_waits() -> None:
    """No tickets, no batch."""
    assert pick([]) == []
