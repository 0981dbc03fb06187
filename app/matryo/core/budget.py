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
from typing import Literal, Self, get_args

from matryo.core.errors import Overloaded

Holder = Literal["body", "texts", "tokens", "vectors", "answer", "connection"]
"""What bytes are taken for: a body as it comes, the texts in a request, their tokens, the vectors,
the answer as it goes, and what a connection keeps beside its request."""

_HOLDERS: tuple[Holder, ...] = get_args(Holder)

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
        by_holder: the same, by what they are taken for.
    """

    def __init__(
        self,
        limit: int | None = None,
        on_refused: Callable[[], None] | None = None,
    ) -> None:
        self.limit = limit
        self.held = 0
        self.by_holder = dict.fromkeys(_HOLDERS, 0)
        self._on_refused = on_refused
        self._held_by: dict[Owner, int] = {}

    def lease(self, owner: Owner | None = None) -> Lease:
        """A lease of nothing yet, for one request.

        Args:
            owner: whose request it is; None where nobody shares the budget.
        """
        return Lease(self, owner)

    def check(self, n_bytes: int, owner: Owner | None = None) -> None:
        """Refuse bytes that do not fit beside those that are held.

        Raises:
            Overloaded: they do not fit.
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
                reason="memory",
            )

    def change(self, n_bytes: int, holder: Holder, owner: Owner | None = None) -> None:
        """Take bytes that fit, or give back a negative number of them."""
        self.held += n_bytes
        self.by_holder[holder] += n_bytes
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

    __slots__ = ("_budget", "_owner", "_parts", "held")

    def __init__(self, budget: Budget, owner: Owner | None = None) -> None:
        self._budget = budget
        self._parts: dict[Holder, int] = {}
        self._owner = owner
        self.held = 0

    def grow(self, n_bytes: int, holder: Holder) -> None:
        """Hold so many bytes more.

        Raises:
            Overloaded: they do not fit; the lease stays what it was.
        """
        if n_bytes > 0:
            self._budget.check(n_bytes, self._owner)
            self._take(n_bytes, holder)

    def hold(self, n_bytes: int, holder: Holder) -> None:
        """Hold exactly so many bytes, in place of all that is held.

        Raises:
            Overloaded: they do not fit; the lease stays what it was.
        """
        self._budget.check(n_bytes - self.held, self._owner)
        self.end()
        self._take(n_bytes, holder)

    def end(self) -> None:
        """Give everything back; ending twice is fine."""
        for holder, n_bytes in self._parts.items():
            self._budget.change(-n_bytes, holder, self._owner)
        self._parts.clear()
        self.held = 0

    def _take(self, n_bytes: int, holder: Holder) -> None:
        self._budget.change(n_bytes, holder, self._owner)
        self._parts[holder] = self._parts.get(holder, 0) + n_bytes
        self.held += n_bytes

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
