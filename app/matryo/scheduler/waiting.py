"""The requests with jobs to run, in the orders that the policy asks for.

A request that comes or goes costs a binary search in two sorted lists: `insort` and `del` move
pointers behind the index, which takes a microsecond for thousands of requests. No call looks at
every request.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from matryo.engine import Engine
from matryo.scheduler.jobs import Ticket
from matryo.scheduler.rates import Work

Entry = tuple[float, int, Ticket]
"""What a list is sorted by, the number of the ticket, the ticket. Numbers are unique, so that two
tickets are never compared."""


@dataclass(eq=False, slots=True)
class Lane:
    """The requests of one model and one kind.

    Attributes:
        engine: the model.
        all_long: whether every pending text of each request runs alone.
        by_size: sorted by the tokens that are pending.
        by_age: sorted by the clock when a run last took a job.
        work: of all that is pending.
        n_requests: of callers.
        n_texts: pending jobs of these requests.
    """

    engine: Engine
    all_long: bool
    by_size: list[Entry] = field(default_factory=list[Entry])
    by_age: list[Entry] = field(default_factory=list[Entry])
    work: Work = field(default_factory=dict[int, int])
    n_requests: int = 0
    n_texts: int = 0

    def count(self, work: Work, n_texts: int, sign: int) -> None:
        """Add a request, or take one away.

        Args:
            work: of the request.
            n_texts: pending jobs of the request; 0 for a probe, which no caller waits for.
            sign: 1 or -1.
        """
        for kind, n_tokens in work.items():
            self.work[kind] = self.work.get(kind, 0) + sign * n_tokens
        if n_texts:
            self.n_requests += sign
            self.n_texts += sign * n_texts


class Waiting:
    """Classified tickets with pending jobs. A ticket that changes leaves first and comes again.

    Attributes:
        queries: the lanes of queries, at most two for each model.
        bulk: the lanes of bulk, likewise.
        n_tokens: of all pending jobs.
        n_probe_tokens: of those among them that no caller waits for.
    """

    def __init__(self) -> None:
        self.queries: list[Lane] = []
        self.bulk: list[Lane] = []
        self.n_tokens = self.n_probe_tokens = 0
        # Lane, entries, work and number of texts of each ticket as they were when it came.
        self._places: dict[Ticket, tuple[Lane, Entry, Entry, Work, int]] = {}

    def __len__(self) -> int:
        """Number of tickets that wait."""
        return len(self._places)

    def add(self, ticket: Ticket) -> None:
        """Let a ticket with pending jobs wait."""
        lane = self._lane(ticket)
        size = ticket.pending_tokens, ticket.number, ticket
        age = ticket.waiting_since, ticket.number, ticket
        n_texts = 0 if ticket.is_probe else len(ticket.pending)
        self._places[ticket] = lane, size, age, ticket.work, n_texts
        insort(lane.by_size, size)
        insort(lane.by_age, age)
        lane.count(ticket.work, n_texts, 1)
        self.n_tokens += ticket.pending_tokens
        if ticket.is_probe:
            self.n_probe_tokens += ticket.pending_tokens

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket wait no more; nothing happens if it does not wait."""
        place = self._places.pop(ticket, None)
        if place is None:
            return
        lane, size, age, work, n_texts = place
        del lane.by_size[bisect_left(lane.by_size, size)]
        del lane.by_age[bisect_left(lane.by_age, age)]
        lane.count(work, n_texts, -1)
        self.n_tokens -= sum(work.values())
        if ticket.is_probe:
            self.n_probe_tokens -= sum(work.values())

    def clear(self) -> None:
        """Forget every ticket."""
        self.queries.clear()
        self.bulk.clear()
        self._places.clear()
        self.n_tokens = self.n_probe_tokens = 0

    def _lane(self, ticket: Ticket) -> Lane:
        lanes = self.bulk if ticket.bulk else self.queries
        all_long = ticket.pending[0].n_tokens > ticket.long_tokens
        for lane in lanes:
            if lane.engine is ticket.engine and lane.all_long is all_long:
                return lane
        lanes.append(Lane(ticket.engine, all_long))
        return lanes[-1]


def first_live(entries: Sequence[Entry], start: int = 0) -> int:
    """Index of the first ticket from `start` on that somebody waits for; the end if there is none.

    A ticket that nobody waits for leaves in the next turn of the loop: there are never many.
    """
    while start < len(entries) and not entries[start][-1].live:
        start += 1
    return start
