"""The policy as a plain look at every request: what `next_batch` must choose, at any cost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Ticket
from matryo.scheduler.policy import Budget, is_bulk, long_tokens


def linear_batch(
    tickets: Sequence[Ticket],
    budget: Budget,
    config: SchedulerConfig,
    *,
    now: float,
    bulk_since: float,
    long_allowed: bool = True,
) -> list[Job]:
    """The jobs to run now; see `next_batch`."""
    queries: list[Ticket] = []
    bulk: list[Ticket] = []
    for ticket in tickets:
        pending = ticket.pending
        if pending and (long_allowed or pending[0].n_tokens <= long_tokens(ticket.engine, budget)):
            (bulk if is_bulk(ticket, budget) else queries).append(ticket)
    if not queries and not bulk:
        return []
    query_leads = bool(queries) and not (bulk and now - bulk_since >= config.starve_s)
    leader = _leader(queries if query_leads else bulk, config.starve_s, now)
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


def _leader(waiting: Sequence[Ticket], starve_s: float, now: float) -> Ticket:
    oldest = min(waiting, key=lambda ticket: ticket.waiting_since)
    if now - oldest.waiting_since >= starve_s:
        return oldest
    return min(waiting, key=_size)


def _size(ticket: Ticket) -> tuple[int, float]:
    return ticket.pending_tokens, ticket.arrived


def _length(job: Job) -> int:
    return job.n_tokens
