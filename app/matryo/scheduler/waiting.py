"""The requests with jobs to run, in the orders that the policy asks for.

A request that comes or goes costs a binary search in two sorted lists: `insort` and `del` move
pointers behind the index, which takes a microsecond for thousands of requests. No call looks at
every request.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from matryo.engine import Engine
from matryo.scheduler.jobs import Ticket

Entry = tuple[float, int, Ticket]
"""What a list is sorted by, the number of the ticket, the ticket. Numbers are unique, so that two
tickets are never compared."""


@dataclass(eq=False, slots=True)
class Lane:
    """The requests of one model and one kind.

    Attributes:
        engine: the model.
        bulk: whether the requests are bulk.
        all_long: whether every pending text of each request runs alone.
        by_size: sorted by the tokens that are pending.
        by_age: sorted by the clock when a run last took a job.
        work: pending tokens by `length_class`; no class has the value 0.
        n_tokens: all pending tokens.
    """

    engine: Engine
    bulk: bool
    all_long: bool
    by_size: list[Entry] = field(default_factory=list[Entry])
    by_age: list[Entry] = field(default_factory=list[Entry])
    work: Counter[int] = field(default_factory=Counter[int])
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a ticket stands, and what its lane counts for it, whatever the ticket became since."""

    lane: Lane
    size: Entry
    age: Entry
    work: Counter[int]


class Waiting:
    """Classified tickets with pending jobs. A ticket that changes leaves first and comes again."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, bool, bool], Lane] = {}
        self._places: dict[Ticket, _Place] = {}

    def __contains__(self, ticket: Ticket) -> bool:
        """Whether a ticket waits."""
        return ticket in self._places

    @property
    def n_tokens(self) -> int:
        """Tokens of all pending jobs."""
        return sum(lane.n_tokens for lane in self._lanes.values())

    def lanes(self, *, bulk: bool) -> list[Lane]:
        """The lanes of one kind: at most two for each model."""
        return [lane for lane in self._lanes.values() if lane.bulk is bulk]

    def lane(self, engine: Engine, *, bulk: bool, all_long: bool) -> Lane:
        """One lane; it may be empty."""
        key = id(engine), bulk, all_long
        if key not in self._lanes:
            self._lanes[key] = Lane(engine, bulk, all_long)
        return self._lanes[key]

    def add(self, ticket: Ticket) -> None:
        """Let a ticket with pending jobs wait."""
        all_long = ticket.pending[0].n_tokens > ticket.long_tokens
        lane = self.lane(ticket.engine, bulk=ticket.bulk, all_long=all_long)
        size = ticket.pending_tokens, ticket.number, ticket
        age = ticket.waiting_since, ticket.number, ticket
        self._places[ticket] = place = _Place(lane, size, age, ticket.work.copy())
        insort(lane.by_size, size)
        insort(lane.by_age, age)
        lane.work += place.work
        lane.n_tokens += ticket.pending_tokens

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket wait no more; nothing happens if it does not wait."""
        place = self._places.pop(ticket, None)
        if place is None:
            return
        lane = place.lane
        del lane.by_size[bisect_left(lane.by_size, place.size)]
        del lane.by_age[bisect_left(lane.by_age, place.age)]
        lane.work -= place.work
        lane.n_tokens -= place.work.total()

    def clear(self) -> None:
        """Forget every ticket."""
        self._lanes.clear()
        self._places.clear()


def first_live(entries: Sequence[Entry], start: int = 0) -> int:
    """Index of the first ticket from `start` on that somebody waits for; the end if there is none.

    A ticket that nobody waits for leaves in the next turn of the loop: there are never many.
    """
    while start < len(entries) and not entries[start][-1].live:
        start += 1
    return start
