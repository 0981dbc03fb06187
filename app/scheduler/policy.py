"""Which jobs go next: a pure function of what waits, the limits and the clock.

The ticket with the least left to do leads, so that a query passes a bulk request; a
ticket that had nothing taken for `max_wait_s` leads before all others, so that bulk goes
on too. The batch is then filled with texts of nearly the same length, first the leader's,
then anybody's on the same model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.engine import SOLO_TOKENS, Engine
from app.scheduler.jobs import Job, Ticket


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_tokens: texts times the longest of them; a single text may exceed it.
        max_padding: share of those that may be padding,
        free_padding: or this many tokens, if more: tiny texts cost less padded than apart.
        solo_tokens: texts over this many tokens run alone.
    """

    max_tokens: int
    max_padding: float = 0.1
    free_padding: int = 16
    solo_tokens: int = SOLO_TOKENS

    def padding(self, padded: int) -> float:
        """Padding allowed in a batch of `padded` tokens in all."""
        return max(self.max_padding * padded, self.free_padding)


def next_batch(
    tickets: Sequence[Ticket],
    limits_of: Callable[[Engine], BatchLimits],
    *,
    max_wait_s: float,
    now: float,
) -> list[Job]:
    """The jobs to run now.

    Args:
        tickets: what is admitted, in order of arrival. Not changed.
        limits_of: bounds of a batch, by model: a slower one gets smaller batches.
        max_wait_s: after so many seconds without progress a ticket leads.
        now: the clock, in seconds.

    Returns:
        Jobs of one engine, longest first; empty only if nothing is pending.
    """
    waiting = [ticket for ticket in tickets if ticket.pending]
    if not waiting:
        return []
    leader = _leader(waiting, max_wait_s, now)
    limits = limits_of(leader.engine)
    # The leader's longest text sets the width: no later text of it is then any wider.
    width = leader.pending[-1].n_tokens
    if width > limits.solo_tokens:
        return [leader.pending[-1]]

    batch: list[Job] = []
    n_tokens = 0
    for candidates in _candidates(leader, waiting, width):
        for job in candidates:
            padded = (len(batch) + 1) * width
            if batch and padded > limits.max_tokens:
                return batch
            if padded - n_tokens - job.n_tokens > limits.padding(padded):
                break  # the rest of this ticket is shorter still
            batch.append(job)
            n_tokens += job.n_tokens
    return batch


def _leader(waiting: Sequence[Ticket], max_wait_s: float, now: float) -> Ticket:
    oldest = min(waiting, key=lambda ticket: ticket.waiting_since)
    if now - oldest.waiting_since >= max_wait_s:
        return oldest
    return min(waiting, key=lambda ticket: (ticket.pending_tokens, ticket.arrived))


def _candidates(leader: Ticket, waiting: Sequence[Ticket], width: int) -> Iterator[Iterator[Job]]:
    """For each ticket, its jobs of at most `width` tokens, longest first; the leader's first."""
    yield reversed(leader.pending)
    for ticket in waiting:
        if ticket is not leader and ticket.engine is leader.engine:
            fitting = bisect_right(ticket.pending, width, key=lambda job: job.n_tokens)
            yield (ticket.pending[place] for place in range(fitting - 1, -1, -1))
