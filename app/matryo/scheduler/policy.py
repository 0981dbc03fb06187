"""Which jobs run next: a function of what waits, the engines' limits and the clock.

A *query* is an online request that fits in half a batch; every other request is *bulk*. Queries run
before bulk. If bulk had nothing computed for `starve_s`, bulk runs first. Among queries, and
among bulk requests, the tenant whose turn it is leads (see `accounts`). Of its requests, the one
with the fewest tokens left leads, unless another had nothing computed for as long. Queries of a
tenant that had `starve_s` seconds of work beyond its due come after bulk of the other tenant:
nobody starves another's bulk by sending queries alone.

The leader's longest text begins the batch. Texts of any request for the same model then fill the
batch, the longest that fits first: reading the weights for a query serves bulk as well. Bulk joins
no query while another worker is idle. Texts of very different lengths stay apart where attention
would compute too much padding.

Guests come after every other tenant: their runs begin where no other tenant has anything waiting or
under way, and are interrupted when another tenant's request comes. The work of an interrupted run
is lost. Runs of guests are therefore short while others send requests (see `_part`), and no text of
a guest joins a batch of others, or the other way round. A guest that is owed `starve_s` seconds of
work by another tenant does not wait for that tenant.

A choice costs a few binary searches for each text of the batch, however many requests and tenants
wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import itemgetter

from matryo.engine import Engine
from matryo.scheduler.accounts import Account, Accounts
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Entry, Group, first_live
from matryo.scheduler.jobs import Job, Ticket
from matryo.scheduler.waiting import Waiting

Budget = Callable[[Engine, int], int]
"""Tokens that a batch of this engine may have, by the length of its longest text. A single text may
exceed the budget."""

MAX_MISSES = 32
"""A batch looks for company until so many requests or tenants in a row had no text that fits. The
requests of a tenant come by size: behind that many misses, hardly any request has a text that is
small enough."""


def classify(ticket: Ticket, budget: Budget) -> None:
    """Decide whether a request is bulk, and which of its texts are long.

    A request is classified once, when it is admitted. The budget follows the measured rates and
    moves a little with every run: a class that moved too would mean a look at every request after
    every run, and would break the promise of the wait that the request was admitted with.
    """
    ticket.bulk = is_bulk(ticket, budget)
    ticket.long_tokens = long_tokens(ticket.engine, budget)


def is_bulk(ticket: Ticket, budget: Budget) -> bool:
    """Whether a request is no query: it was not sent as online, or does not fit in half a batch."""
    return (
        ticket.priority != "online" or ticket.n_tokens > budget(ticket.engine, ticket.longest) // 2
    )


def long_tokens(engine: Engine, budget: Budget) -> int:
    """Texts over this many tokens run alone, and take longer than a batch should."""
    return min(budget(engine, budget(engine, 1)), engine.limits.solo_tokens)


def next_batch(
    waiting: Waiting,
    budget: Budget,
    config: SchedulerConfig,
    *,
    now: float,
    bulk_since: float,
    long_allowed: bool = True,
    before: Collection[Account] = (),
    gap_s: float = math.inf,
    yields: bool = False,
    is_idle: bool = False,
) -> list[Job]:
    """The jobs to run now.

    Args:
        waiting: the requests with pending jobs. Not changed.
        budget: a slower model has a smaller one.
        config: of the scheduler.
        now: the clock, in seconds.
        bulk_since: the clock when a run last had bulk, or when bulk began to wait.
        long_allowed: whether a text over `long_tokens` may run. Limiting how many of them run at
            once keeps a worker free for queries, and bounds memory.
        before: the tenants whose runs guests wait for.
        gap_s: mean seconds between two requests that interrupt runs of guests.
        yields: whether those requests interrupt every run.
        is_idle: whether another worker has nothing to do.

    Returns:
        Jobs of one engine; empty only if nothing that may run is pending.
    """
    accounts, starve_s = waiting.accounts, config.starve_s
    is_due = now - bulk_since >= starve_s
    first, guest = (
        _first(accounts, starve_s, now, due=is_due, long_allowed=long_allowed, guests=guests)
        for guests in (False, True)
    )
    before = [*before, first[0]] if first else before
    if guest and all(other.ahead_s(guest[0]) > starve_s for other in before):
        first = guest
    if first is None:
        return []
    account, leader = first
    longest = leader.long_tokens
    job = leader.pending[-1]
    if job.n_tokens > longest:
        if long_allowed:
            return [job]
        job = leader.pending[bisect_right(leader.pending, longest, key=_length) - 1]

    gap_s = gap_s if account.is_guest or yields else math.inf

    def most_tokens(length: int) -> int:
        most = budget(leader.engine, length)
        part = _part(leader.engine.limits.run_tokens / most, gap_s / config.batch_s)
        return int(most * min(part, 1.0 if leader.bulk else config.query_share))

    batch = _Batch(job, longest, most_tokens, config.joining_cost)
    batch.fill(leader)
    # Bulk that rides with a query holds the answer up, and another worker has time for it.
    kinds = (False,) if is_idle and not leader.bulk else (False, True)
    for kind in kinds if len(waiting) > 1 else ():
        batch.n_misses = 0
        for other in accounts.ranked(bulk=kind, long_allowed=False, guests=account.is_guest):
            if batch.n_misses >= MAX_MISSES:
                break
            if other.ahead_s(account) <= starve_s:
                batch.fill_from(other.bulk if kind else other.queries, leader)
            else:
                batch.n_misses += 1
    return batch.jobs


def _part(fixed: float, gap: float) -> float:
    """The length of a run that loses least where runs are interrupted, beside that of a full batch.

    A long run loses much when interrupted, and short ones have more fixed costs. Source: Young, "A
    first order approximation to the optimum checkpoint interval", CACM 1974.

    Args:
        fixed: fixed cost of a run; the unit of this and the next is a full batch.
        gap: mean time between two interruptions.
    """
    return math.sqrt(2 * fixed * gap)


def _first(
    accounts: Accounts,
    starve_s: float,
    now: float,
    *,
    due: bool,
    long_allowed: bool,
    guests: bool,
) -> tuple[Account, Ticket] | None:
    """The tenant among guests, or among all others, whose turn it is, and the leading request."""
    query, bulk = (
        _first_of(
            accounts.ranked(bulk=bulk, long_allowed=long_allowed, guests=guests),
            starve_s,
            now,
            bulk=bulk,
            long_allowed=long_allowed,
        )
        for bulk in (False, True)
    )
    if query and bulk:
        return bulk if _passes(bulk[0], query[0], starve_s, due=due) else query
    return query or bulk


def _passes(bulk: Account, query: Account, starve_s: float, *, due: bool) -> bool:
    """Whether bulk goes before a query.

    Args:
        bulk: of whom the bulk is.
        query: of whom the query is.
        starve_s: of the configuration.
        due: whether bulk had nothing computed for `starve_s`.
    """
    if query.ahead_s(bulk) > starve_s:
        return True
    return due and bulk.ahead_s(query) <= starve_s


def _first_of(
    accounts: Iterable[Account], starve_s: float, now: float, *, bulk: bool, long_allowed: bool
) -> tuple[Account, Ticket] | None:
    """The first of some tenants that has a request somebody waits for, and that request."""
    for account in accounts:
        groups = account.bulk if bulk else account.queries
        if not long_allowed:
            groups = [group for group in groups if not group.all_long]
        if leader := _leader(groups, starve_s, now):
            return account, leader
    return None


def _leader(groups: Sequence[Group], starve_s: float, now: float) -> Ticket | None:
    oldest = _least([group.by_age for group in groups])
    if oldest is None or now - oldest.waiting_since >= starve_s:
        return oldest
    return _least([group.by_size for group in groups])


def _least(orders: Sequence[Sequence[Entry]]) -> Ticket | None:
    """The first ticket of several orders that somebody waits for."""
    first: Entry | None = None
    for entries in orders:
        index = first_live(entries)
        if index < len(entries) and (first is None or entries[index] < first):
            first = entries[index]
    return first[-1] if first else None


class _Batch:
    """A batch as it fills.

    Args:
        first: the job that begins it.
        longest: the most tokens that a text of it may have.
        most_tokens: of the batch, by the length of its longest text.
        joining_cost: see `SchedulerConfig`.

    Attributes:
        jobs: of the batch.
        n_misses: requests and tenants in a row that had no text that fits.
    """

    def __init__(
        self, first: Job, longest: int, most_tokens: Callable[[int], int], joining_cost: float
    ) -> None:
        self.jobs = [first]
        self._engine = first.ticket.engine
        self._limits = self._engine.limits
        self._most = longest
        self._most_tokens = most_tokens
        self._joining_cost = joining_cost
        self._n_tokens = self._longest = first.n_tokens
        self.n_misses = 0

    def fill(self, ticket: Ticket) -> bool:
        """Add jobs of a request, the longest that fits first, while that is worth its cost.

        Returns:
            Whether a job was added.
        """
        pending, n_jobs = ticket.pending, len(self.jobs)
        index: int = len(pending)
        while True:
            room = min(self._room(self._longest), self._most)
            index = bisect_right(pending, room, hi=index, key=_length) - 1
            if index < 0:
                break
            job = pending[index]
            if job is self.jobs[0]:
                continue
            if not self._takes(job.n_tokens):
                break
            self.jobs.append(job)
            self._n_tokens += job.n_tokens
            self._longest = max(self._longest, job.n_tokens)
        return len(self.jobs) > n_jobs

    def fill_from(self, groups: Sequence[Group], leader: Ticket) -> None:
        """Add jobs of the requests of a tenant, the smallest first; the leader's are there."""
        for group in groups:
            if group.engine is not self._engine or group.all_long:
                continue
            entries = group.by_size
            index = bisect_left(entries, self._shortest(), key=itemgetter(0))
            while self.n_misses < MAX_MISSES:
                index = first_live(entries, index)
                if index == len(entries):
                    break
                ticket = entries[index][-1]
                index += 1
                if ticket is not leader:
                    self.n_misses = 0 if self.fill(ticket) else self.n_misses + 1
        self.n_misses += 1

    def _room(self, longest: int) -> int:
        """Tokens that the batch may still take if its longest text has `longest` tokens."""
        return self._most_tokens(longest) - self._n_tokens

    def _scores(self, longest: int) -> int:
        """Attention scores of the batch with one text more, its longest text then being this."""
        return (len(self.jobs) + 1) * longest**2

    def _shortest(self) -> int:
        """Tokens of the shortest text that is worth its cost; a smaller request has no such text.

        The longer a text, the better it goes with a longest one of its length or more.
        """
        lengths = range(1, self._longest)
        return 1 + bisect_left(lengths, 1, key=self._is_worth)  # 1 is True

    def _takes(self, n_tokens: int) -> bool:
        longest = max(self._longest, n_tokens)
        return (
            n_tokens <= self._room(longest)
            and self._scores(longest) <= self._limits.max_scores
            and self._is_worth(n_tokens)
        )

    def _is_worth(self, n_tokens: int) -> bool:
        """Whether a text costs little more in this batch than alone. Costs are in tokens."""
        limits = self._limits
        added = self._scores(max(self._longest, n_tokens)) - len(self.jobs) * self._longest**2
        cost = n_tokens + added * limits.score_tokens
        lone_cost = n_tokens + n_tokens**2 * limits.score_tokens
        return cost <= self._joining_cost * lone_cost + limits.run_tokens


def _length(job: Job) -> int:
    return job.n_tokens
