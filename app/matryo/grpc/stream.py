"""Answers to a stream of messages: in order, many at a time, waiting where a call is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from matryo.core.budget import Lease
from matryo.core.errors import (
    BodyTimeout,
    CapacityError,
    Overloaded,
    Stopping,
    TokenRateReached,
    TooManyForRate,
)
from matryo.grpc.calls import Call
from matryo.grpc.messages import Message

GROUPS = 2
"""Groups of one stream that are answered at a time: one computes while one waits."""
MOST_MESSAGES = 64
"""Of a group: full batches of short texts."""

_MOST_BYTES = 8 * 1024  # of the messages of a group but for its last one: about two batches
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 1.0

Work = Callable[[Sequence[Message], Lease], Awaitable[Sequence[bytes]]]
"""Answers a group of messages; the lease holds what the messages need."""


async def in_order(call: Call, work: Work) -> AsyncGenerator[bytes, None]:
    """The answers to the messages of a call.

    Messages that have come while others were answered form a group, which costs little more than
    one message. A group that is refused for lack of room is tried again until there is room, and no
    further message is read meanwhile; so is a message that is refused because the key has used up
    its tokens of the minute. Any other error ends the stream after the answers before it.

    Raises:
        BodyTimeout: the caller sent nothing for too long, with no answer left to wait for.
        Stopping: the server stops, and the caller has sent nothing more.
    """
    stream = _Stream(call, work)
    reader = asyncio.create_task(stream.read())
    try:
        while (task := await stream.oldest()) is not None:
            group = await task
            for content in group.answers:
                yield content
            if group.error:
                raise group.error
            stream.forget(task)
    finally:
        left: list[asyncio.Task[Any]] = [reader, *stream.pending]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Group:
    """What became of a group.

    Attributes:
        answers: to its messages, or to those before an error.
        error: of the next message; None if every message has its answer.
    """

    answers: Sequence[bytes]
    error: Exception | None = None


class _Stream:
    """The messages that are read and not answered.

    Attributes:
        pending: a task for each group, the oldest first.
    """

    def __init__(self, call: Call, work: Work) -> None:
        self._call, self._work = call, work
        self._waiting: list[bytes] = []
        self.pending: deque[asyncio.Task[_Group]] = deque()
        self._n_refused = 0
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._is_over = False
        self._error: Exception | None = None

    async def read(self) -> None:
        """Read messages and begin to answer them, until the last message or an error."""
        try:
            while (raw := await self._call.read_raw()) is not None:
                self._waiting.append(raw)
                self._begin()
                await self._room.wait()
        except Exception as exc:
            self._error = exc
        finally:
            self._is_over = True
            self._news.set()

    def _begin(self) -> None:
        """Begin to answer the messages that wait, if there is room for a group."""
        if self._waiting and len(self.pending) < GROUPS:
            self.pending.append(asyncio.create_task(self._answered(self._waiting)))
            self._waiting = []
            self._news.set()
        self._look()

    def _look(self) -> None:
        """Note whether there is room for another message."""
        most = min(MOST_MESSAGES, self._call.limits.max_texts)
        n_bytes = sum(map(len, self._waiting))
        if len(self._waiting) < most and n_bytes <= _MOST_BYTES and not self._n_refused:
            self._room.set()
        else:
            self._room.clear()

    async def oldest(self) -> asyncio.Task[_Group] | None:
        """The answers to the oldest group, which may come only now; None after the last one."""
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

    def forget(self, task: asyncio.Task[_Group]) -> None:
        """Make room for another group."""
        self.pending.remove(task)
        self._begin()

    async def _answered(self, raws: Sequence[bytes]) -> _Group:
        try:
            return _Group(await self._patiently(raws))
        except Exception as exc:
            is_too_many = isinstance(exc, TokenRateReached | TooManyForRate)
            if len(raws) == 1 or (isinstance(exc, CapacityError) and not is_too_many):
                return _Group((), exc)
        # One of the messages is at fault: those before it have answers. Or the key has too few
        # tokens for all of them at once.
        answers: list[bytes] = []
        for raw in raws:
            group = await self._answered([raw])
            answers += group.answers
            if group.error:
                return _Group(answers, group.error)
        return _Group(answers)

    async def _patiently(self, raws: Sequence[bytes]) -> Sequence[bytes]:
        """The answers to some messages, as soon as there is room for them."""
        pause_s, has_refused = _FIRST_PAUSE_S, False
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    with self._call.service.lease(self._call.caller) as lease:
                        messages = [self._call.parsed(raw, lease) for raw in raws]
                        return await self._work(messages, lease)
                except (Overloaded, TokenRateReached) as exc:
                    # Of several messages, some may be computed and charged: no second time.
                    if len(raws) > 1 and isinstance(exc, TokenRateReached):
                        raise
                    if not has_refused:
                        stack.enter_context(self._refused())
                    has_refused = True
                    if isinstance(exc, TokenRateReached):
                        await asyncio.sleep((exc.retry_after_ms or 0) / 1000)
                        continue
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
