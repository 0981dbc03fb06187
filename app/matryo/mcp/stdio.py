"""Serves one client over standard input and output, a JSON-RPC message a line.

Only messages are written to standard output: while a client is served, whatever else writes there
writes to standard error. Threads of our own read and write, because the SDK's wait for the client
before a process can end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Generator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, BinaryIO, cast

from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from matryo.core.errors import MatryoError, SetupError
from matryo.core.signals import Stopped

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve_client(server: Server, streams: tuple[BinaryIO, BinaryIO], most_bytes: int) -> None:
    """Serve the client of this process until its end of standard input; for the main thread.

    Args:
        server: of `build_tools_server`, whose service is entered.
        streams: of `private_streams`.
        most_bytes: of one message.

    Raises:
        SetupError: a message has more bytes.
        Stopped: SIGTERM, SIGINT or SIGHUP came.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    stopped: list[int] = []

    def stop(number: int) -> None:
        if not stopped:
            stopped.append(number)
            task.cancel()

    # A signal that the parent ignores, as `nohup` does, stays ignored.
    numbers = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        await _serve(server, streams, most_bytes)
    except (asyncio.CancelledError, Exception):
        if not stopped:
            raise
        # The SDK's streams also raise errors of their own when they are cancelled.
        task.uncancel()
        raise Stopped(stopped[0]) from None
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _serve(server: Server, streams: tuple[BinaryIO, BinaryIO], most_bytes: int) -> None:
    lines, writer = _Lines(streams[0], most_bytes), _Writer(streams[1])
    try:
        # The SDK wants files of anyio, and uses no more of them than these two classes have.
        async with stdio_server(cast("Any", lines), cast("Any", writer)) as (read, write):
            await server.run(read, write, server.create_initialization_options())
    except BaseExceptionGroup as exc:
        _raise_cause(exc)


def _raise_cause(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the error of ours that a group has, if any, else the group.

    A client that no longer reads has ended, and so has the work for the client.
    """
    leaves = list(_leaves(group))
    for exc in leaves:
        if isinstance(exc, MatryoError):
            raise exc
    if not any(isinstance(exc, BrokenPipeError) for exc in leaves):
        raise group


def _leaves(exc: BaseException) -> Generator[BaseException, None, None]:
    if isinstance(exc, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from _leaves(one)
    else:
        yield exc


@contextlib.contextmanager
def private_streams() -> Generator[tuple[BinaryIO, BinaryIO], None, None]:
    """Standard input and output for the block alone.

    Meanwhile the process's own input is empty, and its output goes to standard error.
    """
    sys.stdout.flush()
    given, taken = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    try:
        # A thread may still wait in one of them when the block ends: they are never closed.
        yield (
            os.fdopen(given, "rb", closefd=False),
            os.fdopen(taken, "wb", buffering=0, closefd=False),
        )
    finally:
        sys.stdout.flush()
        os.dup2(given, 0)
        os.dup2(taken, 1)


class _Lines:
    """The lines of a stream, read by a thread that does not keep the process alive."""

    def __init__(self, stream: BinaryIO, most_bytes: int) -> None:
        self._stream, self._most_bytes = stream, most_bytes

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[bytes | None] = asyncio.Queue(1)

        def read() -> None:
            # The loop may be closed by the time that a line comes, or while a line waits.
            with contextlib.suppress(RuntimeError, CancelledError):
                while line := self._stream.readline(self._most_bytes + 1):
                    asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
                asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()

        threading.Thread(target=read, name="matryo-stdin", daemon=True).start()
        while (line := await lines.get()) is not None:
            if len(line) > self._most_bytes:
                raise SetupError(
                    f"the client sent a message of more than {self._most_bytes} bytes. Send fewer "
                    "texts in one call, or raise MATRYO_MAX_BODY_BYTES."
                )
            yield line.decode("utf-8", "replace")


class _Writer:
    """Writes to a stream, on a thread that does not keep the process alive."""

    def __init__(self, stream: BinaryIO) -> None:
        self._work: SimpleQueue[tuple[bytes, Future[None]]] = SimpleQueue()
        self._stream = stream
        threading.Thread(target=self._run, name="matryo-stdout", daemon=True).start()

    def _run(self) -> None:
        while True:
            data, done = self._work.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                view = memoryview(data)
                while view:
                    view = view[self._stream.write(view) :]
            except OSError as exc:
                done.set_exception(exc)
            else:
                done.set_result(None)

    async def write(self, text: str) -> None:
        """Return once the text is written.

        Raises:
            OSError: the reader is gone.
        """
        done: Future[None] = Future()
        self._work.put((text.encode(), done))
        await asyncio.wrap_future(done)

    async def flush(self) -> None:
        """Nothing is kept back."""
