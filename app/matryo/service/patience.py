"""How long a caller waits: until the caller is gone, or until a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from matryo.core.errors import CallerGone, DeadlinePassed

T = TypeVar("T")

Gone = Callable[[], Awaitable[object]]
"""Makes an awaitable that completes when the caller is gone; called once the work begins."""


async def while_wanted(
    work: Coroutine[Any, Any, T], *, gone: Gone | None, deadline_s: float | None
) -> T:
    """The result of `work`, which is cancelled when nobody waits for the result any more.

    Args:
        work: what the caller asked for.
        gone: see `Gone`; None for a caller that stays.
        deadline_s: seconds after which the caller has stopped waiting; None for never.

    Raises:
        CallerGone: the caller was gone before `work` was done.
        DeadlinePassed: `work` was not done in time.
    """
    if deadline_s is None:
        return await _unless_gone(work, gone)
    try:
        async with asyncio.timeout(deadline_s):
            return await _unless_gone(work, gone)
    except TimeoutError as exc:
        raise DeadlinePassed(timeout_s=deadline_s) from exc


async def _unless_gone(work: Coroutine[Any, Any, T], gone: Gone | None) -> T:
    if gone is None:
        return await work
    task = asyncio.current_task()
    assert task
    is_gone = is_done = False

    def cancel(_: asyncio.Future[object]) -> None:
        nonlocal is_gone
        # The loop may have scheduled this call already when `work` ended: a cancellation now
        # would hit whatever the task does next.
        if not is_done:
            is_gone = True
            task.cancel()

    watching = asyncio.ensure_future(gone())
    watching.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        # As asyncio.timeout does: only the cancellation that is ours becomes an error.
        if is_gone and not task.uncancel():
            raise CallerGone from None
        raise
    finally:
        is_done = True
        watching.cancel()
