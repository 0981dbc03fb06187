"""Takes the connections of a server, so that its processes share them.

Event loops take every connection that waits as soon as they wake up. Where several processes wait
on one socket, the first to wake up would get all connections that came together, and keep them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("matryo.http")

_AFTER_FAILURE_S = 1.0  # such as a lack of open files
# In this time, another process of the server wakes up and takes the next connection.
_TURN_S = 0.001


class Acceptor:
    """Takes the connections of one listening socket, one in each turn of the loop.

    Args:
        loop: the event loop.
        listening: the socket.
        factory: makes the protocol of a connection.
        is_shared: whether other processes take connections of the same socket. After each
            connection, they get a millisecond to take the next.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        is_shared: bool,
    ) -> None:
        self._loop = loop
        self._socket = listening
        listening.setblocking(False)  # noqa: FBT003 - no keyword
        self._factory = factory
        self._is_shared = is_shared
        self._is_closed = False
        self._opening: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Take the connections that wait, then no further one; closing twice is fine.

        The kernel has told the peers of waiting connections that they are connected. To close the
        socket would reset these connections, with the requests that they may carry.
        """
        if self._is_closed:
            return
        self._is_closed = True
        while self._take():
            pass
        if self._pause:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        if self._take() and self._is_shared:
            self._rest(_TURN_S)

    def _take(self) -> bool:
        """Take one connection; returns whether there was one."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another process was first, or the peer is gone
        except OSError as exc:
            log.error("cannot accept a connection: %s", exc.strerror or exc)  # noqa: TRY400 - no trace
            if not self._is_closed:
                self._rest(_AFTER_FAILURE_S)
            return False
        connection.setblocking(False)  # noqa: FBT003 - no keyword
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:  # the peer is gone
            connection.close()
