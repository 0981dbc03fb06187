"""Which jobs go next: a pure function of what waits, the limits and the clock.

The ticket with the least left to do leads, so that a query passes a bulk request; a
ticket that had nothing taken for `max_wait_s` leads before all others, so that bulk goes
on too. The batch is then filled up: a bulk request's with texts of nearly the same length,
a query's with whatever waits, so that reading the weights for a query serves bulk as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.engine import SOLO_TOKENS, Engine
from app.scheduler.jobs import Job, Ticket

# Attention computes a padded score with every other token, at about this part of the price
# of a token's products. Measured: v1.5 does 512 tokens at 0.88 of the rate of 128.
_SCORE_TOKENS = 1 / 4096
# A text joins a batch if that costs little more than a batch of its own, which would also
# read all the weights again: about as dear as so many tokens.
_JOINING_COST, _RUN_TOKENS = 1.25, 16


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_tokens: by the longest text of a batch, how many tokens it may have in all; a
            single text may exceed it.
        max_padding: of a bulk request's batch, the share of attention that may be padding,
        free_padding: or this many tokens, if more: tiny texts cost less padded than apart.
        max_scores: texts times the square of the longest; bounds attention's memory.
        solo_tokens: texts over this many tokens run alone.
    """

    max_tokens: Callable[[int], int]
    max_padding: float = 0.05
    free_padding: int = 16
    max_scores: int = 1 << 21
    solo_tokens: int = SOLO_TOKENS

    @property
    def long_tokens(self) -> int:
        """Texts over this many tokens take a run of their own that lasts over its time."""
        return min(self.max_tokens(self.max_tokens(1)), self.solo_tokens)


class _Batch:
    """A batch as it fills: one job to begin with."""

    def __init__(self, first: Job) -> None:
        self.jobs = [first]
        self.n_tokens = self.longest = first.n_tokens

    def add(self, job: Job) -> None:
        self.jobs.append(job)
        self.n_tokens += job.n_tokens
        self.longest = max(self.longest, job.n_tokens)

    def n_scores(self, job: Job) -> int:
        """Attention scores with one more job."""
        return (len(self.jobs) + 1) * max(self.longest, job.n_tokens) ** 2

    def added_cost(self, job: Job) -> float:
        """What one more job costs, in tokens."""
        now = len(self.jobs) * self.longest**2
        return job.n_tokens + (self.n_scores(job) - now) * _SCORE_TOKENS


def next_batch(
    tickets: Sequence[Ticket],
    limits_of: Callable[[Engine], BatchLimits],
    *,
    max_wait_s: float,
    now: float,
    long_allowed: bool = True,
) -> list[Job]:
    """The jobs to run now.

    Args:
        tickets: what is admitted, in order of arrival. Not changed.
        limits_of: bounds of a batch, by model: a slower one gets smaller batches.
        max_wait_s: after so many seconds without progress a ticket leads.
        now: the clock, in seconds.
        long_allowed: whether a text over `long_tokens` may run. A few at a time keep a worker
            free for queries, and bound memory.

    Returns:
        Jobs of one engine; empty only if nothing that may run is pending.
    """
    waiting = [
        ticket
        for ticket in tickets
        if ticket.pending
        and (long_allowed or ticket.pending[0].n_tokens <= limits_of(ticket.engine).long_tokens)
    ]
    if not waiting:
        return []
    leader = _leader(waiting, max_wait_s, now)
    limits = limits_of(leader.engine)
    first = leader.pending[-1]
    if first.n_tokens > limits.long_tokens:
        if long_allowed:
            return [first]
        first = next(_up_to(leader, limits.long_tokens))

    batch = _Batch(first)
    max_tokens = limits.max_tokens(first.n_tokens)
    if leader.pending_tokens <= max_tokens // 2:
        others = sorted(
            (t for t in waiting if t is not leader and t.engine is leader.engine),
            key=lambda ticket: (ticket.pending_tokens, ticket.arrived),
        )
        _ride_along(batch, leader, others, limits)
    else:
        _alike(batch, leader, waiting, limits)
    return batch.jobs


def _leader(waiting: Sequence[Ticket], max_wait_s: float, now: float) -> Ticket:
    oldest = min(waiting, key=lambda ticket: ticket.waiting_since)
    if now - oldest.waiting_since >= max_wait_s:
        return oldest
    return min(waiting, key=lambda ticket: (ticket.pending_tokens, ticket.arrived))


def _alike(batch: _Batch, leader: Ticket, waiting: Sequence[Ticket], limits: BatchLimits) -> None:
    """Fill a bulk request's batch with texts of nearly its length, the leader's own first."""
    longest = batch.longest
    max_tokens = limits.max_tokens(longest)
    for ticket in (leader, *(ticket for ticket in waiting if ticket is not leader)):
        if ticket.engine is not leader.engine:
            continue
        for job in _up_to(ticket, longest):
            if job is batch.jobs[0]:
                continue
            n_tokens = batch.n_tokens + job.n_tokens
            if n_tokens > max_tokens or batch.n_scores(job) > limits.max_scores:
                return
            slots = (len(batch.jobs) + 1) * longest
            if slots - n_tokens > max(limits.max_padding * slots, limits.free_padding):
                break  # the rest of this ticket is shorter still
            batch.add(job)


def _ride_along(
    batch: _Batch, leader: Ticket, others: Sequence[Ticket], limits: BatchLimits
) -> None:
    """Take all of a query, then whatever of others costs little more here than by itself.

    Such a batch gets half the time of others, so that the query is not kept long.
    """
    for job in _up_to(leader, batch.longest):
        if job is not batch.jobs[0]:
            if batch.n_scores(job) > limits.max_scores:
                return
            batch.add(job)
    for ticket in others:
        room = limits.max_tokens(batch.longest) // 2 - batch.n_tokens
        if room < ticket.pending[0].n_tokens:
            continue
        for job in _up_to(ticket, min(room, limits.long_tokens)):
            longest = max(batch.longest, job.n_tokens)
            alone = job.n_tokens + job.n_tokens**2 * _SCORE_TOKENS
            if (
                batch.n_tokens + job.n_tokens > limits.max_tokens(longest) // 2
                or batch.n_scores(job) > limits.max_scores
                or batch.added_cost(job) > _JOINING_COST * alone + _RUN_TOKENS
            ):
                break
            batch.add(job)


def _up_to(ticket: Ticket, longest: int) -> Iterator[Job]:
    """Jobs of a ticket of at most `longest` tokens, longest first."""
    fitting = bisect_right(ticket.pending, longest, key=lambda job: job.n_tokens)
    return (ticket.pending[place] for place in range(fitting - 1, -1, -1))
