"""The policy as a pure function: nothing lost, nothing starved, budgets kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.engine import Engine
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Priority, Ticket
from matryo.scheduler.policy import classify, long_tokens, next_batch
from matryo.scheduler.waiting import Waiting
from tests.fakes import LIMITS, MINILM, FakeEngine

MAX_TOKENS = 200
CONFIG = SchedulerConfig(starve_s=1.0)
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


def ticket(
    lengths: Sequence[int],
    now: float = 0.0,
    engine: Engine = ENGINES[0],
    priority: Priority = "online",
) -> Ticket:
    """A request of distinct texts of these lengths."""
    texts = [np.full(length, index, np.int64) for index, length in enumerate(lengths)]
    return Ticket(engine, texts, 8, now, priority)


def pick(
    tickets: Sequence[Ticket],
    now: float = 0.0,
    max_tokens: int = MAX_TOKENS,
    *,
    long_allowed: bool = True,
    bulk_since: float | None = None,
) -> list[Job]:
    """The next batch of so many tokens; bulk waits since the first request came, by default."""
    since = min((ticket.waiting_since for ticket in tickets), default=now)
    waiting = Waiting()
    for each in tickets:
        if each.pending:
            classify(each, lambda engine, longest: max_tokens)
            waiting.add(each)
    return next_batch(
        waiting,
        lambda engine, longest: max_tokens,
        CONFIG,
        now=now,
        bulk_since=since if bulk_since is None else bulk_since,
        long_allowed=long_allowed,
    )


def check(batch: Sequence[Job]) -> None:
    """What holds for every batch."""
    longest = max(job.n_tokens for job in batch)
    assert len({id(job) for job in batch}) == len(batch)
    assert len({job.ticket.engine for job in batch}) == 1
    if len(batch) > 1:
        assert sum(job.n_tokens for job in batch) <= MAX_TOKENS
        assert len(batch) * longest**2 <= LIMITS.max_scores
        assert longest <= LIMITS.solo_tokens


lengths = st.lists(st.integers(1, 700), min_size=1, max_size=20)


priorities = st.sampled_from(get_args(Priority))


@given(st.lists(st.tuples(lengths, st.integers(0, 1), st.floats(0, 5), priorities), max_size=8))
def test_everything_runs_once_within_bounds(
    requests: list[tuple[list[int], int, float, Priority]],
) -> None:
    """Whatever waits, taking batch after batch runs each job once, each batch in bounds."""
    tickets = [
        ticket(texts, now, ENGINES[kind], priority) for texts, kind, now, priority in requests
    ]
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
    """A request that had nothing taken for starve_s leads before any small one."""
    bulk, query = ticket([90] * 50, now=0.0), ticket([10], now=0.9)
    assert pick([bulk, query], now=1.0)[0].ticket is bulk
    bulk.take(pick([bulk, query], now=1.0), 1.0)
    assert pick([bulk, query], now=1.1)[0].ticket is query


def test_bulk_does_not_pass_queries_for_bulk() -> None:
    """A bulk request that waits for other bulk has no claim on a query's turn."""
    old, busy, query = ticket([90] * 50, now=0.0), ticket([80] * 9, now=4.0), ticket([9], now=4.9)
    assert pick([old, busy, query], now=5.0, bulk_since=4.8)[0].ticket is query
    assert pick([old, busy], now=5.0, bulk_since=4.8)[0].ticket is old


def test_sent_as_bulk() -> None:
    """A request sent as bulk waits for every query, though it is the smallest and came first."""
    bulk, query = ticket([3], now=0.0, priority="bulk"), ticket([40, 40], now=0.5)
    batch = pick([bulk, query], now=0.6)
    assert [job.n_tokens for job in batch] == [40, 40, 3]
    assert pick([bulk, query], now=1.0, bulk_since=0.0)[0].ticket is bulk


def test_queries_fill_a_query_batch_before_bulk() -> None:
    """Small requests sent as bulk do not take the room of a larger query."""
    bulk = [ticket([9], priority="bulk") for _ in range(20)]
    first, second = ticket([10], now=0.1), ticket([60], now=0.2)
    batch = pick([*bulk, first, second], now=0.3)
    assert [job.ticket for job in batch[:2]] == [first, second]


@given(
    st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 90),
)
def test_bulk_never_leads_a_query(sizes: list[list[int]], length: int) -> None:
    """However small and old, requests sent as bulk do not lead while a query waits."""
    bulk = [ticket(texts, now=0.0, priority="bulk") for texts in sizes]
    query = ticket([length], now=0.5)
    assert pick([*bulk, query], now=0.9)[0].ticket is query


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


def test_bulk_fills_its_time() -> None:
    """The longest first, then what still fits, whoever sent it."""
    first, second = ticket([60, 90, 20, 20]), ticket([59, 10, 300, 45])
    assert [job.n_tokens for job in pick([first, second])] == [90, 60, 20, 20, 10]


@given(st.lists(st.lists(st.integers(1, 100), min_size=20), min_size=1, max_size=4))
def test_batches_are_nearly_full(requests: list[list[int]]) -> None:
    """With enough short texts at hand, a bulk batch uses nearly all of its time."""
    tickets = [ticket([*range(1, 101), *texts]) for texts in requests]
    assert sum(job.n_tokens for job in pick(tickets)) >= 0.95 * MAX_TOKENS


def test_bulk_rides_with_a_query() -> None:
    """A query's batch takes bulk texts along, of any length, but is shorter than others."""
    query, bulk = ticket([12], now=1.0), ticket([70, 90, 40, 160, 300, 43], now=0.5)
    batch = pick([bulk, query], now=1.1)
    assert batch[0].ticket is query
    assert [job.n_tokens for job in batch] == [12, 90, 43]


def test_queries_ride_together() -> None:
    """Several queries make one batch, however many texts each has."""
    queries = [ticket([10]), ticket([12, 9]), ticket([30])]
    assert len(pick(queries)) == 4


def test_short_queries_do_not_ride_with_a_giant() -> None:
    """Where attention's padding would cost more than a batch of its own, texts stay apart."""
    queries = ticket([8] * 8)
    assert len(pick([queries, ticket([500] * 3)], max_tokens=10_000)) == 8
    assert len(pick([queries, ticket([50] * 3, now=1.0)], max_tokens=10_000)) == 11


@given(st.lists(lengths, min_size=1, max_size=6))
def test_one_long_text_at_a_time(requests: list[list[int]]) -> None:
    """While one runs, only texts that keep to their time are picked, if there are any."""
    batch = pick([ticket(texts) for texts in requests], long_allowed=False)
    assert long_tokens(ENGINES[0], lambda engine, longest: MAX_TOKENS) == MAX_TOKENS
    assert all(job.n_tokens <= MAX_TOKENS for job in batch)
    assert bool(batch) == any(n <= MAX_TOKENS for texts in requests for n in texts)


def test_attention_is_bounded() -> None:
    """However fast the model, scores of one batch fit in memory."""
    batch = pick([ticket([512] * 100)], max_tokens=1 << 30)
    assert len(batch) == LIMITS.max_scores // 512**2


def test_other_models_do_not_mix() -> None:
    """A batch has one model."""
    batch = pick([ticket([20]), ticket([20], engine=ENGINES[1])])
    assert len(batch) == 1


def test_long_texts_run_alone() -> None:
    """Over solo_tokens there is no company, even of equals."""
    assert len(pick([ticket([600, 600, 10])], max_tokens=10_000)) == 1
    assert len(pick([ticket([512, 512])], max_tokens=10_000)) == 2


def test_a_text_over_the_budget_still_runs() -> None:
    """The budget bounds company, not a single text."""
    assert [job.n_tokens for job in pick([ticket([400, 3])])] == [400]


def test_nothing_waits() -> None:
    """No tickets, no batch."""
    assert pick([]) == []
