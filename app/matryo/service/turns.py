"""The order in which pieces of work get a text thread.

The tenant that had the least time of the threads, by its weight, goes first. Of its requests, the
one with less text left goes first, but a piece that has waited for `_STARVING_S` goes before the
tenant's others.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matryo.scheduler import Tenant

_STARVING_S = 0.5


@dataclass(eq=False, slots=True)
class Piece:
    """Work that waits for a thread, or that a thread does.

    Attributes:
        left: characters that the request has left, this piece's included.
        number: in order of arrival.
        arrived_s: the clock at arrival.
        is_long: see `Job.run`.
        tenant: whose work it is.
        done: gets the result, or the error as a value, and the seconds that the thread took. Some
            errors, such as StopIteration, cannot pass through a future.
    """

    work: Callable[[], Any]
    left: int
    number: int
    arrived_s: float
    is_long: bool
    tenant: Tenant
    done: asyncio.Future[tuple[Any, BaseException | None, float]]

    def rank(self, now: float) -> tuple[int, float, int]:
        """The order of two pieces of a tenant: the one with the smaller rank goes first."""
        if now - self.arrived_s > _STARVING_S:
            return 0, self.arrived_s, self.number
        return 1, self.left, self.number


class Lane:
    """Pieces of one tenant that wait, either long ones or others."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Piece] = OrderedDict()
        self._by_left: list[tuple[int, int]] = []  # a heap; some numbers wait no more

    def add(self, piece: Piece) -> None:
        """Let a piece wait."""
        self._waiting[piece.number] = piece
        heapq.heappush(self._by_left, (piece.left, piece.number))

    def remove(self, piece: Piece) -> None:
        """Forget a piece, if it waits."""
        self._waiting.pop(piece.number, None)
        if len(self._by_left) > 2 * len(self._waiting) + 64:
            self._by_left = [(one.left, one.number) for one in self._waiting.values()]
            heapq.heapify(self._by_left)

    def first(self, now: float) -> Piece | None:
        """The piece that goes first; None if none waits."""
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting.values()))
        if now - oldest.arrived_s > _STARVING_S:
            return oldest
        while self._by_left[0][1] not in self._waiting:
            heapq.heappop(self._by_left)
        return self._waiting[self._by_left[0][1]]

    def __bool__(self) -> bool:
        """Whether a piece waits."""
        return bool(self._waiting)

    def drain(self) -> list[Piece]:
        """Forget all pieces, and return them."""
        pieces = list(self._waiting.values())
        self._waiting.clear()
        self._by_left.clear()
        return pieces


class Turns:
    """Whose turn it is: start-time fair queueing, as in `matryo.scheduler.accounts`."""

    def __init__(self) -> None:
        self._had: dict[str | None, float] = {}
        self._clock = 0.0
        self._lanes: dict[Tenant, tuple[Lane, Lane]] = {}

    def add(self, piece: Piece) -> None:
        """Let a piece wait."""
        name, lanes = piece.tenant.name, self._lanes.get(piece.tenant)
        if lanes is None:
            lanes = self._lanes[piece.tenant] = Lane(), Lane()
            self._had[name] = max(self._had.get(name, 0.0), self._clock)
        lanes[piece.is_long].add(piece)

    def remove(self, piece: Piece) -> None:
        """Forget a piece, if it waits."""
        if lanes := self._lanes.get(piece.tenant):
            lanes[piece.is_long].remove(piece)
            if not any(lanes):
                del self._lanes[piece.tenant]

    def charge(self, tenant: Tenant, seconds: float) -> None:
        """Count time that a thread spent for a tenant."""
        had = self._had.get(tenant.name, self._clock)
        self._had[tenant.name] = had + seconds / tenant.weight

    def first(self, now: float, *, long_allowed: bool) -> Piece | None:
        """The piece that goes first; None if none waits that may run."""
        found: list[Piece] = []
        for short, long in self._lanes.values():
            lanes = (short, long) if long_allowed else (short,)
            pieces = [piece for lane in lanes if (piece := lane.first(now))]
            if pieces:
                found.append(min(pieces, key=lambda piece: piece.rank(now)))
        if not found:
            return None
        first = min(found, key=lambda piece: self._had[piece.tenant.name])
        self._clock = max(self._clock, self._had[first.tenant.name])
        return first

    def drain(self) -> list[Piece]:
        """Forget all pieces, and return them."""
        lanes = [lane for pair in self._lanes.values() for lane in pair]
        self._lanes.clear()
        return [piece for lane in lanes for piece in lane.drain()]
