"""The bytes that all requests of a process may hold at once.

A request takes what it needs before it needs it, and gives all of it back when its answer is
written or its caller is gone. What does not fit is refused, and never read or computed.

Where several owners share the budget, the last quarter is kept for those that hold less than their
share: one owner cannot hold so much that the requests of others are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from matryo.core.errors import Overloaded

_KEPT = 0.25
"""Part of the budget that is kept for owners that hold less than their share."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One of several that share a budget, in proportion to their weights.

    Attributes:
        name: of the owner.
        weight: over 0.
    """

    name: str
    weight: float = 1.0


class Budget:
    """The bytes of a process. All of it belongs to the event loop.

    Args:
        limit: bytes that all leases together may hold; None for no limit.
        on_refused: called when bytes do not fit.

    Attributes:
        held: bytes that all leases together hold.
    """

    def __init__(
        self,
        limit: int | None = None,
        on_refused: Callable[[], None] | None = None,
    ) -> None:
        self.limit = limit
        self.held = 0
        self._on_refused = on_refused
        self._held_by: dict[Owner, int] = {}

    def lease(self, owner: Owner | None = None) -> Lease:
        """A lease of nothing yet, for one request.

        Args:
            owner: whose request it is; None where nobody shares the budget.
        """
        return Lease(self, owner)

    def change(self, n_bytes: int, owner: Owner | None = None) -> None:
        """Take bytes, or give back a negative number of them.

        Raises:
            Overloaded: the bytes do not fit beside those that are held.
        """
        if n_bytes > 0 and self.limit is not None and self._is_over(n_bytes, self.limit, owner):
            if self._on_refused:
                self._on_refused()
            raise Overloaded(
                resource="bytes of memory (MATRYO_MEMORY_BUDGET_BYTES)",
                requested=n_bytes,
                used=self.held,
                limit=self.limit,
                retry_after_s=1,
            )
        self.held += n_bytes
        if owner:
            held = self._held_by.get(owner, 0) + n_bytes
            if held:
                self._held_by[owner] = held
            else:
                self._held_by.pop(owner, None)

    def _is_over(self, n_bytes: int, limit: int, owner: Owner | None) -> bool:
        """Whether so many bytes more are more than there are, or more than an owner may have."""
        if self.held + n_bytes > limit:
            return True
        if owner is None or self.held + n_bytes <= (1 - _KEPT) * limit:
            return False
        others = sum(other.weight for other in self._held_by if other != owner)
        # An owner that is alone must leave room for another one, which may come.
        share = owner.weight / (owner.weight + max(others, owner.weight))
        return self._held_by.get(owner, 0) + n_bytes > share * limit


class Lease:
    """The bytes that one request holds. Leave its `with` block, or call `end`, to give them back.

    Attributes:
        held: bytes that the request holds.
    """

    __slots__ = ("_budget", "_owner", "held")

    def __init__(self, budget: Budget, owner: Owner | None = None) -> None:
        self._budget = budget
        self._owner = owner
        self.held = 0

    def grow(self, n_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            Overloaded: they do not fit; the lease stays what it was.
        """
        if n_bytes > 0:
            self._budget.change(n_bytes, self._owner)
            self.held += n_bytes

    def shrink(self, n_bytes: int) -> None:
        """Give some bytes back, at most what is held."""
        n_bytes = min(n_bytes, self.held)
        self.held -= n_bytes
        self._budget.change(-n_bytes, self._owner)

    def hold(self, n_bytes: int) -> None:
        """Hold exactly so many bytes.

        Raises:
            Overloaded: they do not fit; the lease stays what it was.
        """
        if n_bytes > self.held:
            self.grow(n_bytes - self.held)
        else:
            self.shrink(self.held - n_bytes)

    def end(self) -> None:
        """Give everything back; ending twice is fine."""
        if self.held:
            self.shrink(self.held)

    def __enter__(self) -> Self:
        """Return the lease itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give everything back."""
        self.end()
