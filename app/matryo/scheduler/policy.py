"""Which jobs run next: a function of what waits, the engines' limits and the clock.

A *query* is an online request that fits in half a batch; every other request is *bulk*. Queries run
before bulk. If bulk had nothing computed for `starve_s`, bulk runs first. Among queries, and
among bulk requests, the tenant whose turn it is leads (see `accounts`). Of its requests, the one
with the fewest tokens left leads, unless another had nothing computed for as long. Queries of a
tenant that had `starve_s` seconds of work beyond its due, or of a *guest* that had any, come after
bulk of the other tenant: nobody starves another's bulk by sending queries alone.

The leader's longest text begins the batch. Texts of any request for the same model then fill the
batch, the longest that fits first: reading the weights for a query serves bulk as well. Texts of
very different lengths stay apart where attention would compute too much padding.

No run can be interrupted. While another tenant may send a request at any moment, batches of guests
are therefore short, and guests leave one worker free. Texts of guests join the batches of guests
alone, because the others in a batch are answered only when the batch is done. While guests wait,
batches of others are short too, or a worker's part of the leader's texts: a run beside runs of
guests never gets every core, so that the request is spread over the workers instead.

A choice costs a few binary searches for each text of the batch, however many requests and tenants
wait.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from matryo.engine import Engine
from matryo.scheduler.accounts import Account
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
    """Whether a request is no query: it was sent as bulk, or does not fit in half a batch."""
    return ticket.priority == "bulk" or ticket.n_tokens > budget(ticket.engine, ticket.longest) // 2


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
    guests_allowed: bool = True,
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
        guests_allowed: whether a guest may lead while another tenant may send a request soon.

    Returns:
        Jobs of one engine; empty only if nothing that may run is pending.
    """
    accounts, starve_s = waiting.accounts, config.starve_s
    is_yielding = accounts.expects_others(now)
    query, bulk = (
        _first_of(
            accounts.ranked(
                bulk=bulk,
                long_allowed=long_allowed,
                guests_allowed=guests_allowed or not is_yielding,
            ),
            starve_s,
            now,
            bulk=bulk,
            long_allowed=long_allowed,
        )
        for bulk in (False, True)
    )
    is_due = now - bulk_since >= starve_s
    query_leads = bool(query) and not (bulk and _passes(bulk[0], query[0], starve_s, due=is_due))
    first_tenant = query if query_leads else bulk
    if first_tenant is None:
        return []
    account, leader = first_tenant
    longest = leader.long_tokens
    first = leader.pending[-1]
    if first.n_tokens > longest:
        if long_allowed:
            return [first]
        first = leader.pending[bisect_right(leader.pending, longest, key=_length) - 1]

    is_short = is_yielding if account.is_guest else accounts.guests_wait()
    part = 0.0 if account.is_guest else leader.n_tokens / config.workers

    def most_tokens(length: int) -> int:
        most = budget(leader.engine, length)
        n_tokens = most * (config.query_share if query_leads else 1.0)
        return int(min(n_tokens, max(part, config.guest_share * most)) if is_short else n_tokens)

    batch = _Batch(first, longest, most_tokens, config.joining_cost)
    batch.fill(leader)
    for kind in (False, True) if len(waiting) > 1 else ():
        batch.n_misses = 0
        for other in accounts.ranked(
            bulk=kind, long_allowed=False, guests_allowed=account.is_guest
        ):
            if batch.n_misses >= MAX_MISSES:
                break
            if other.ahead_s(account) <= starve_s:
                batch.fill_from(other.bulk if kind else other.queries, leader)
            else:
                batch.n_misses += 1
    return batch.jobs


def _passes(bulk: Account, query: Account, starve_s: float, *, due: bool) -> bool:
    """Whether bulk goes before a query.

    Args:
        bulk: of whom the bulk is.
        query: of whom the query is.
        starve_s: of the configuration.
        due: whether bulk had nothing computed for `starve_s`.
    """
    if query.ahead_s(bulk) > (0.0 if query.is_guest else starve_s):
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
    oldest = _first([group.by_age for group in groups])
    if oldest is None or now - oldest.waiting_since >= starve_s:
        return oldest
    return _first([group.by_size for group in groups])


def _first(orders: Sequence[Sequence[Entry]]) -> Ticket | None:
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
            index = bisect_left(entries, self._least(), key=itemgetter(0))
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

    def _least(self) -> int:
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
