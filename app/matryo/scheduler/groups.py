"""The requests of one tenant, model and kind, in the orders that the policy asks for."""

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
class Load:
    """The work that waits for one model.

    Attributes:
        engine: the model.
        work: of all that is pending.
        n_requests: with pending jobs.
        n_called: of those, the requests of callers.
        n_texts: pending jobs of callers.
    """

    engine: Engine
    work: Work = field(default_factory=dict[int, int])
    n_requests: int = 0
    n_called: int = 0
    n_texts: int = 0

    def count(self, work: Work, n_texts: int, sign: int) -> None:
        """Add a request, or take one away.

        Args:
            work: of the request.
            n_texts: pending jobs of the request; 0 for a probe, which no caller waits for.
            sign: 1 or -1.
        """
        self.n_requests += sign
        if n_texts:
            self.n_called += sign
            self.n_texts += sign * n_texts
        for kind, n_tokens in work.items():
            self.work[kind] = self.work.get(kind, 0) + sign * n_tokens


@dataclass(eq=False, slots=True)
class Group(Load):
    """The requests of one tenant, model and kind.

    Attributes:
        all_long: whether every pending text of each request runs alone.
        by_size: sorted by the tokens that are pending.
        by_age: sorted by the clock when a run last took a job.
    """

    all_long: bool = False
    by_size: list[Entry] = field(default_factory=list[Entry])
    by_age: list[Entry] = field(default_factory=list[Entry])

    def add(self, size: Entry, age: Entry, work: Work, n_texts: int) -> None:
        """Take a request in."""
        insort(self.by_size, size)
        insort(self.by_age, age)
        self.count(work, n_texts, 1)

    def remove(self, size: Entry, age: Entry, work: Work, n_texts: int) -> None:
        """Let a request go."""
        del self.by_size[bisect_left(self.by_size, size)]
        del self.by_age[bisect_left(self.by_age, age)]
        self.count(work, n_texts, -1)


def first_live(entries: Sequence[Entry], start: int = 0) -> int:
    """Index of the first ticket from `start` on that somebody waits for; the end if there is none.

    A ticket that nobody waits for leaves in the next turn of the loop: there are never many.
    """
    while start < len(entries) and not entries[start][-1].live:
        start += 1
    return start
