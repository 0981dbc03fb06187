"""Answers to a stream of messages: in order, many at a time, waiting where a call is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

from matryo.core.budget import Lease
from matryo.core.errors import BodyTimeout, Overloaded, Stopping
from matryo.grpc.calls import Call
from matryo.grpc.messages import Message

WINDOW = 128
"""Messages of one stream that are answered at a time: full batches of short texts."""

_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 1.0

Work = Callable[[Message, Lease], Awaitable[bytes]]
"""Answers one message of a stream; the lease holds what the message needs."""


async def in_order(call: Call, work: Work) -> AsyncGenerator[bytes, None]:
    """The answers to the messages of a call.

    A message that is refused for lack of room is tried again until there is room, and no further
    message is read meanwhile. Any other error ends the stream after the answers before it.

    Raises:
        BodyTimeout: the caller sent nothing for too long, with no answer left to wait for.
        Stopping: the server stops, and the caller has sent nothing more.
    """
    stream = _Stream(call, work)
    reader = asyncio.create_task(stream.read())
    try:
        while (task := await stream.oldest()) is not None:
            yield await task
            stream.forget(task)
    finally:
        left: list[asyncio.Task[Any]] = [reader, *stream.pending]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Stream:
    """The messages that are read and not answered.

    Attributes:
        pending: a task for each of them, the oldest first.
    """

    def __init__(self, call: Call, work: Work) -> None:
        self._call, self._work = call, work
        self.pending: deque[asyncio.Task[bytes]] = deque()
        self._n_refused = 0
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._is_over = False
        self._error: Exception | None = None

    async def read(self) -> None:
        """Read messages and begin to answer them, until the last message or an error."""
        try:
            while (raw := await self._call.read_raw()) is not None:
                self.pending.append(asyncio.create_task(self._answer(raw)))
                self._news.set()
                self._look()
                await self._room.wait()
        except Exception as exc:
            self._error = exc
        finally:
            self._is_over = True
            self._news.set()

    async def oldest(self) -> asyncio.Task[bytes] | None:
        """The answer to the oldest message, which may come only now; None after the last one."""
        while not self.pending and not self._is_over:
            self._news.clear()
            await self._wait()
        if self.pending:
            return self.pending[0]
        if self._error:
            raise self._error
        return None

    async def _wait(self) -> None:
        """Return once there is news."""
        timeout_s = self._call.limits.timeout_s
        events = (self._news, self._call.draining)
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        if self._news.is_set():
            return
        raise Stopping if done else BodyTimeout(timeout_s=timeout_s)

    def forget(self, task: asyncio.Task[bytes]) -> None:
        """Make room for another message."""
        self.pending.remove(task)
        self._look()

    def _look(self) -> None:
        """Note whether there is room for another message."""
        if len(self.pending) < WINDOW and not self._n_refused:
            self._room.set()
        else:
            self._room.clear()

    async def _answer(self, raw: bytes) -> bytes:
        pause_s = _FIRST_PAUSE_S
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    with self._call.service.budget.lease() as lease:
                        return await self._work(self._call.parsed(raw, lease), lease)
                except Overloaded:
                    if pause_s == _FIRST_PAUSE_S:
                        stack.enter_context(self._refused())
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    @contextlib.contextmanager
    def _refused(self) -> Generator[None, None, None]:
        """Read nothing more until the block ends."""
        self._n_refused += 1
        self._look()
        try:
            yield
        finally:
            self._n_refused -= 1
            self._look()
