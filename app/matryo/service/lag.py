"""How late the event loop runs: whatever holds the loop delays every caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_PAUSE_S = 0.05


async def watch_lag(observe: Callable[[float], object]) -> None:
    """Report how many seconds late each of a row of timers comes; runs until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _PAUSE_S
        await asyncio.sleep(_PAUSE_S)
        observe(max(0.0, loop.time() - due))
