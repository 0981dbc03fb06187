"""Threads for calls that wait for a disk or for another server, apart from those that compute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A few threads of their own: a slow store takes none from the rest of the server.

    Args:
        n_threads: calls that may wait at the same time.
        name: of the threads.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix=name)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns. If the caller is cancelled, a call that has begun runs on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Return once all calls have ended; no further one begins."""
        self._executor.shutdown()
