"""Which jobs go next: a pure function of what waits, the limits and the clock.

A query, a request small enough for half a batch, leads before bulk, unless bulk had
nothing taken for `max_wait_s`. Among queries, and among bulk requests, the one with the
least left to do leads, unless another had nothing taken for as long. The batch is then
filled up, the longest that fits first, whoever sent it: tokens are packed, so lengths may
differ as far as attention's padding allows, and reading the weights for a query serves
bulk as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matryo.engine import Engine
from matryo.engine.onnx.interface import SOLO_TOKENS
from matryo.scheduler.jobs import Job, Ticket

# Attention computes a padded score with every other token, at about this part of the price
# of a token's products. Measured: v1.5 does 512 tokens at 0.88 of the rate of 128.
_SCORE_TOKENS = 1 / 4096
# A text joins a batch if that costs little more than a batch of its own, which would also
# read all the weights again: about as dear as so many tokens.
_JOINING_COST, _RUN_TOKENS = 1.25, 16

# A query is answered when its batch is done, so that batch gets less time than others.
_QUERY_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_tokens: by the longest text of a batch, how many tokens it may have in all; a
            single text may exceed it.
        max_scores: texts times the square of the longest; bounds attention's memory.
        solo_tokens: texts over this many tokens run alone.
    """

    max_tokens: Callable[[int], int]
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
    bulk_since: float,
    long_allowed: bool = True,
) -> list[Job]:
    """The jobs to run now.

    Args:
        tickets: what is admitted, in order of arrival. Not changed.
        limits_of: bounds of a batch, by model: a slower one gets smaller batches.
        max_wait_s: after so many seconds without progress a request goes first.
        now: the clock, in seconds.
        bulk_since: when bulk last had a job taken, or began to wait.
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
    queries: list[Ticket] = []
    bulk: list[Ticket] = []
    for ticket in waiting:
        (bulk if is_bulk(ticket, limits_of(ticket.engine)) else queries).append(ticket)
    query_leads = bool(queries) and not (bulk and now - bulk_since >= max_wait_s)
    leader = _leader(queries if query_leads else bulk, max_wait_s, now)
    limits = limits_of(leader.engine)
    first = leader.pending[-1]
    if first.n_tokens > limits.long_tokens:
        if long_allowed:
            return [first]
        place = bisect_right(leader.pending, limits.long_tokens, key=_length) - 1
        first = leader.pending[place]

    batch = _Batch(first)
    share = _QUERY_SHARE if query_leads else 1.0
    others = sorted(
        (t for t in waiting if t is not leader and t.engine is leader.engine),
        key=lambda ticket: (ticket.pending_tokens, ticket.arrived),
    )
    for ticket in (leader, *others):
        _fill(batch, ticket, limits, share)
    return batch.jobs


def is_bulk(ticket: Ticket, limits: BatchLimits) -> bool:
    """Whether a request is too large to be answered by half a batch."""
    return ticket.n_tokens > limits.max_tokens(ticket.longest) // 2


def _leader(waiting: Sequence[Ticket], max_wait_s: float, now: float) -> Ticket:
    oldest = min(waiting, key=lambda ticket: ticket.waiting_since)
    if now - oldest.waiting_since >= max_wait_s:
        return oldest
    return min(waiting, key=lambda ticket: (ticket.pending_tokens, ticket.arrived))


def _fill(batch: _Batch, ticket: Ticket, limits: BatchLimits, share: float) -> None:
    """Add jobs of one ticket, the longest that fits first, while that is worth its cost."""
    place: int = len(ticket.pending)
    while True:
        room = int(limits.max_tokens(batch.longest) * share) - batch.n_tokens
        fitting = min(room, limits.long_tokens)
        place = bisect_right(ticket.pending, fitting, hi=place, key=_length) - 1
        if place < 0:
            return
        job = ticket.pending[place]
        if job is batch.jobs[0]:
            continue
        wider = limits.max_tokens(max(batch.longest, job.n_tokens)) * share
        alone = job.n_tokens + job.n_tokens**2 * _SCORE_TOKENS
        if (
            batch.n_tokens + job.n_tokens > wider
            or batch.n_scores(job) > limits.max_scores
            or batch.added_cost(job) > _JOINING_COST * alone + _RUN_TOKENS
        ):
            return
        batch.add(job)


def _length(job: Job) -> int:
    return job.n_tokens
