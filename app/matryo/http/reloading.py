"""Reads changed files again while the server runs: at each sweep, and at once after SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from matryo.core.reload import SWEEP_S, Reloads

log = logging.getLogger("matryo")


async def reload_changed(reloads: Reloads, hung_up: asyncio.Event) -> None:
    """Read changed files again until the task is cancelled.

    Files are read on another thread: a file system may hang. The values are taken into use on the
    event loop, between two steps of the requests that run.

    Args:
        reloads: the files.
        hung_up: set by SIGHUP; cleared here.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWEEP_S if reloads else None):
                await hung_up.wait()
        is_asked = hung_up.is_set()
        hung_up.clear()
        if is_asked and not reloads:
            log.info("SIGHUP: nothing to reload")
        for use in await asyncio.to_thread(reloads.read, at_once=is_asked):
            try:
                use()
            except Exception:  # a fault of ours must not end all later reloads
                log.exception("what was read again is not in use")
