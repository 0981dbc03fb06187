"""Calls of the storage from the event loop, which go on until the storage answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

from matryo.core.errors import Stopping, StorageFull, StorageUnavailable

log = logging.getLogger("matryo")

T = TypeVar("T")

_MAX_PAUSE_S = 30.0


class Patience:
    """Makes calls of the storage on threads, and repeats a call while the storage is away or full.

    The log has one line when the storage stops answering, and one when it answers again.

    Args:
        pause_s: seconds before a call is repeated for the first time; later pauses are longer.

    Attributes:
        stopping: once set, a call that has failed is not repeated.
    """

    def __init__(self, pause_s: float = 1.0) -> None:
        self.stopping = asyncio.Event()
        self._pause_s = pause_s
        self._is_away = False

    async def call(self, work: Callable[[], T], lock: asyncio.Lock | None = None) -> T:
        """The result of a call; cancelling waits for the call that is under way.

        Args:
            work: the call, which blocks.
            lock: held while the call is under way, but not between two tries.

        Raises:
            Stopping: the call failed, and `stopping` is set.
        """
        pause_s = self._pause_s
        while True:
            try:
                async with lock or contextlib.nullcontext():
                    result = await _on_thread(work)
            except (StorageUnavailable, StorageFull) as exc:
                if not self._is_away:
                    cause = exc.__cause__ or exc.message
                    log.warning("batches: the storage does not take a call, retrying: %s", cause)
                self._is_away = True
            else:
                if self._is_away:
                    log.warning("batches: the storage answers again")
                self._is_away = False
                return result
            await self.pause(pause_s)
            if self.stopping.is_set():
                raise Stopping
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def pause(self, seconds: float, event: asyncio.Event | None = None) -> None:
        """Wait for so long, or until `event` is set (None: until `stopping` is set)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (event or self.stopping).wait()


async def _on_thread(work: Callable[[], T]) -> T:
    """The result of a call on a thread, which has always ended when this returns or raises."""
    call = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait((call,))
        if not call.cancelled():
            call.exception()  # nobody else looks at the error
        raise
