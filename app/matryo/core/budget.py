"""The bytes that all requests of a process may hold at once.

A request takes what it needs before it needs it, and gives all of it back when its answer is
written or its caller is gone. What does not fit is refused, and never read or computed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from matryo.core.errors import Overloaded


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

    def lease(self) -> Lease:
        """A lease of nothing yet, for one request."""
        return Lease(self)

    def change(self, n_bytes: int) -> None:
        """Take bytes, or give back a negative number of them.

        Raises:
            Overloaded: the bytes do not fit beside those that are held.
        """
        if n_bytes > 0 and self.limit is not None and self.held + n_bytes > self.limit:
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


class Lease:
    """The bytes that one request holds. Leave its `with` block, or call `end`, to give them back.

    Attributes:
        held: bytes that the request holds.
    """

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, n_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            Overloaded: they do not fit; the lease stays what it was.
        """
        if n_bytes > 0:
            self._budget.change(n_bytes)
            self.held += n_bytes

    def shrink(self, n_bytes: int) -> None:
        """Give some bytes back, at most what is held."""
        n_bytes = min(n_bytes, self.held)
        self.held -= n_bytes
        self._budget.change(-n_bytes)

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
