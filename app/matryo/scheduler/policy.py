"""Which jobs run next: a pure function of what waits, the engines' limits and the clock.

A *query* is an online request that fits in half a batch; every other request is *bulk*. Queries run
before bulk. If bulk had nothing computed for `max_wait_s`, bulk runs first. Among queries, and
among bulk requests, the one with the fewest tokens left leads, unless another had nothing
computed for as long.

The leader's longest text begins the batch. Texts of any request for the same model then fill the
batch, the longest that fits first: reading the weights for a query serves bulk as well. Texts of
very different lengths stay apart where attention would compute too much padding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from matryo.engine import Engine
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Ticket

Budget = Callable[[Engine, int], int]
"""Tokens that a batch of this engine may have, by the length of its longest text. A single text may
exceed the budget."""


def next_batch(
    tickets: Sequence[Ticket],
    budget: Budget,
    config: SchedulerConfig,
    *,
    now: float,
    bulk_since: float,
    long_allowed: bool = True,
) -> list[Job]:
    """The jobs to run now.

    Args:
        tickets: the admitted requests, in order of arrival. Not changed.
        budget: a slower model has a smaller one.
        config: of the scheduler.
        now: the clock, in seconds.
        bulk_since: the clock when a run last took bulk, or when bulk began to wait.
        long_allowed: whether a text over `long_tokens` may run. Limiting how many of them run at
            once keeps a worker free for queries, and bounds memory.

    Returns:
        Jobs of one engine; empty only if nothing that may run is pending.
    """
    queries: list[Ticket] = []
    bulk: list[Ticket] = []
    for ticket in tickets:
        pending = ticket.pending
        if pending and (long_allowed or pending[0].n_tokens <= long_tokens(ticket.engine, budget)):
            (bulk if is_bulk(ticket, budget) else queries).append(ticket)
    if not queries and not bulk:
        return []
    query_leads = bool(queries) and not (bulk and now - bulk_since >= config.max_wait_s)
    leader = _leader(queries if query_leads else bulk, config.max_wait_s, now)
    engine = leader.engine
    longest = long_tokens(engine, budget)
    first = leader.pending[-1]
    if first.n_tokens > longest:
        if long_allowed:
            return [first]
        first = leader.pending[bisect_right(leader.pending, longest, key=_length) - 1]

    share = config.query_share if query_leads else 1.0
    batch = _Batch(first, longest, budget, share, config.joining_cost)
    batch.fill(leader)
    for ticket in (*sorted(queries, key=_size), *sorted(bulk, key=_size)):
        if ticket.engine is engine and ticket is not leader:
            batch.fill(ticket)
    return batch.jobs


def is_bulk(ticket: Ticket, budget: Budget) -> bool:
    """Whether a request is no query: it was sent as bulk, or does not fit in half a batch."""
    return ticket.priority == "bulk" or ticket.n_tokens > budget(ticket.engine, ticket.longest) // 2


def long_tokens(engine: Engine, budget: Budget) -> int:
    """Texts over this many tokens run alone, and take longer than a batch should."""
    return min(budget(engine, budget(engine, 1)), engine.limits.solo_tokens)


class _Batch:
    """A batch as it fills.

    Args:
        first: the job that begins it.
        most: the most tokens that a text of it may have.
        budget: of the engine.
        share: the part of the budget that may be used.
        joining_cost: see `SchedulerConfig`.
    """

    def __init__(
        self, first: Job, most: int, budget: Budget, share: float, joining_cost: float
    ) -> None:
        self.jobs = [first]
        self._engine = first.ticket.engine
        self._limits = self._engine.limits
        self._most = most
        self._budget = budget
        self._share = share
        self._joining_cost = joining_cost
        self._n_tokens = self._longest = first.n_tokens

    def fill(self, ticket: Ticket) -> None:
        """Add jobs of a request, the longest that fits first, while that is worth its cost."""
        pending = ticket.pending
        index: int = len(pending)
        while True:
            room = min(self._room(self._longest), self._most)
            index = bisect_right(pending, room, hi=index, key=_length) - 1
            if index < 0:
                return
            job = pending[index]
            if job is self.jobs[0]:
                continue
            if not self._takes(job):
                return
            self.jobs.append(job)
            self._n_tokens += job.n_tokens
            self._longest = max(self._longest, job.n_tokens)

    def _room(self, longest: int) -> int:
        """Tokens that the batch may still take if its longest text has `longest` tokens."""
        return int(self._budget(self._engine, longest) * self._share) - self._n_tokens

    def _takes(self, job: Job) -> bool:
        n_tokens, limits = job.n_tokens, self._limits
        longest = max(self._longest, n_tokens)
        n_scores = (len(self.jobs) + 1) * longest**2
        if n_tokens > self._room(longest) or n_scores > limits.max_scores:
            return False
        # Costs are in tokens.
        added_scores = n_scores - len(self.jobs) * self._longest**2
        cost = n_tokens + added_scores * limits.score_tokens
        lone_cost = n_tokens + n_tokens**2 * limits.score_tokens
        return cost <= self._joining_cost * lone_cost + limits.run_tokens


def _leader(waiting: Sequence[Ticket], max_wait_s: float, now: float) -> Ticket:
    oldest = min(waiting, key=lambda ticket: ticket.waiting_since)
    if now - oldest.waiting_since >= max_wait_s:
        return oldest
    return min(waiting, key=_size)


def _size(ticket: Ticket) -> tuple[int, float]:
    return ticket.pending_tokens, ticket.arrived


def _length(job: Job) -> int:
    return job.n_tokens
