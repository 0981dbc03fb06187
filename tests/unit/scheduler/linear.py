"""The policy as a plain look at every request: what `next_batch` must choose, at any cost."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from matryo.scheduler.accounts import Account, Accounts
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Ticket
from matryo.scheduler.policy import Budget, is_bulk, long_tokens


def linear_batch(
    tickets: Sequence[Ticket],
    accounts: Accounts,
    budget: Budget,
    config: SchedulerConfig,
    *,
    now: float,
    bulk_since: float,
    long_allowed: bool = True,
    before: Sequence[Account] = (),
    gap_s: float = math.inf,
    yields: bool = False,
    is_idle: bool = False,
) -> list[Job]:
    """The jobs to run now; see `next_batch`. `accounts` says what each tenant had."""

    def account(ticket: Ticket) -> Account:
        found = accounts.find(ticket.tenant)
        assert found
        return found

    def turn(ticket: Ticket) -> tuple[float, int]:
        return account(ticket).served, account(ticket).number

    queries: list[Ticket] = []
    bulk: list[Ticket] = []
    for ticket in tickets:
        if ticket.pending:
            (bulk if is_bulk(ticket, budget) else queries).append(ticket)

    def first_of(kind: Sequence[Ticket], *, guests: bool) -> Ticket | None:
        may_lead = [
            ticket
            for ticket in kind
            if (long_allowed or ticket.pending[0].n_tokens <= long_tokens(ticket.engine, budget))
            and account(ticket).is_guest is guests
        ]
        if not may_lead:
            return None
        tenant = min(may_lead, key=turn).tenant.name
        mine = [ticket for ticket in may_lead if ticket.tenant.name == tenant]
        return _leader(mine, config.starve_s, now)

    def leading(*, guests: bool) -> Ticket | None:
        query, other = first_of(queries, guests=guests), first_of(bulk, guests=guests)
        if not (query and other):
            return query or other
        had, owed = account(query), account(other)
        gap = had.served - owed.served
        late = now - bulk_since >= config.starve_s
        passes = late and -gap * owed.tenant.weight <= config.starve_s
        return other if gap * had.tenant.weight > config.starve_s or passes else query

    leader, guest = leading(guests=False), leading(guests=True)
    waited_for = [*before, account(leader)] if leader else before
    if guest and all(
        (other.served - account(guest).served) * other.tenant.weight > config.starve_s
        for other in waited_for
    ):
        leader = guest
    if leader is None:
        return []
    mine = account(leader)
    engine = leader.engine
    longest = long_tokens(engine, budget)
    first = leader.pending[-1]
    if first.n_tokens > longest:
        if long_allowed:
            return [first]
        first = leader.pending[bisect_right(leader.pending, longest, key=_length) - 1]

    def most(length: int) -> int:
        whole = budget(engine, length)
        part = 1.0 if is_bulk(leader, budget) else config.query_share
        if mine.is_guest or yields:
            best = math.sqrt(2 * (engine.limits.run_tokens / whole) * (gap_s / config.batch_s))
            part = min(part, best)
        return int(whole * part)

    batch = _Batch(first, longest, most, config.joining_cost)
    batch.fill(leader)
    alone = is_idle and not is_bulk(leader, budget)
    for kind in (queries,) if alone else (queries, bulk):
        for ticket in sorted(kind, key=lambda ticket: (turn(ticket), _size(ticket))):
            other_account = account(ticket)
            beyond_s = (other_account.served - mine.served) * other_account.tenant.weight
            if (
                ticket.engine is engine
                and ticket is not leader
                and beyond_s <= config.starve_s
                and mine.is_guest is other_account.is_guest
            ):
                batch.fill(ticket)
    return batch.jobs


class _Batch:
    """A batch as it fills.

    Args:
        first: the job that begins it.
        most: the most tokens that a text of it may have.
        most_tokens: of the batch, by the length of its longest text.
        joining_cost: see `SchedulerConfig`.
    """

    def __init__(
        self, first: Job, most: int, most_tokens: Callable[[int], int], joining_cost: float
    ) -> None:
        self.jobs = [first]
        self._limits = first.ticket.engine.limits
        self._most = most
        self._most_tokens = most_tokens
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
        return self._most_tokens(longest) - self._n_tokens

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
