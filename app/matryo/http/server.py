"""The life of a server process: start, ready, drain, end.

After SIGTERM or SIGINT a server goes through these steps:

1. `/readyz` answers 503, and for `drain_delay_s` everything else goes on as before.
2. The sockets close. Requests that run get `grace_s`; a request that is not complete is refused,
   and so is every further one.
3. What is left at the end of the grace is answered with 503. Connections that still stay open
   after that are cut.

A second signal, `AGAIN_S` or more after the first, skips to the end. SIGHUP reads keys and
certificates again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from starlette.types import ASGIApp

from matryo.core.budget import Budget
from matryo.core.metrics import Metrics
from matryo.core.networks import Networks
from matryo.core.reload import Reloads
from matryo.core.signals import AGAIN_S, Stopped
from matryo.core.tls_keeper import TlsKeeper
from matryo.http.accepting import Acceptor
from matryo.http.connection import Connection
from matryo.http.connections import ConnectionLimits, Connections, allow_open_files
from matryo.http.listening import Listener
from matryo.http.probe import answering, request_of
from matryo.http.reloading import reload_changed
from matryo.http.tls import ReadBuffer, TlsLayer

log = logging.getLogger("matryo")

_STOPS = (signal.SIGTERM, signal.SIGINT)
# The answers of requests that ran out of grace need a moment to be written.
_LAST_WORDS_S = 2.0
# After the sockets are closed, requests that are on their way still come by open connections.
_LAST_ARRIVALS_S = 0.25
_OPERATORS = 32  # connections of the operators' port


class Served(Protocol):
    """What a server needs to know of the service that it serves."""

    @property
    def budget(self) -> Budget:
        """The bytes that requests may hold."""
        ...

    def announce_stop(self) -> None:
        """Say on `/readyz` that the server stops soon, and go on as before."""
        ...

    def drain(self, grace_s: float) -> None:
        """Admit nothing more; what runs gets so many seconds."""
        ...


class Door(Protocol):
    """Another way into the service, which opens and closes with the lifespan."""

    async def drain(self, grace_s: float) -> None:
        """Take nothing more; return once what runs has ended, after the grace at the latest."""
        ...


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The operator's choices.

    Attributes:
        connections: bounds of connections.
        grace_s: seconds that running requests get after the signal.
        drain_delay_s: seconds before that in which new requests are still taken, each as the last
            one of its connection.
        is_shared: whether several processes take connections of the same sockets.
        proxies: peers whose headers say who calls.
        backlog: connections that wait to be accepted.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    grace_s: float = 25.0
    drain_delay_s: float = 0.0
    is_shared: bool = False
    proxies: Networks = field(default_factory=lambda: Networks(()))
    backlog: int = 2048


class Server:
    """The server of one process.

    Args:
        application: answers the requests.
        lifespan: entered before the first request and left after the last.
        service: is told of the stop.
        listener: the sockets to serve on.
        config: the operator's choices.
        metrics: what is counted.
        on_ready: called once the server has answered a request of its own.
        doors: which drain beside HTTP.
        reloads: the files to read again when they change.
        tls: of the connections; None for plain HTTP.
        operations: answers on the sockets beside those of the application, until the very end;
            None if there are none.

    Attributes:
        connections: the open ones; None before the start.
    """

    def __init__(
        self,
        application: ASGIApp,
        lifespan: AbstractAsyncContextManager[object],
        service: Served,
        listener: Listener,
        config: ServerConfig,
        metrics: Metrics,
        on_ready: Callable[[], None],
        doors: Sequence[Door] = (),
        reloads: Reloads | None = None,
        tls: TlsKeeper | None = None,
        operations: ASGIApp | None = None,
    ) -> None:
        self._application = answering(application, listener.token)
        self._operations = operations
        self._lifespan = lifespan
        self._service = service
        self._listener = listener
        self._config = config
        self._metrics = metrics
        self._on_ready = on_ready
        self._doors = doors
        self._tls = tls
        self._reloads = reloads or Reloads(lambda _what, _outcome: None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signal, self._signalled_at = 0, 0.0
        self._stopping, self._hurry = asyncio.Event(), asyncio.Event()
        self._hung_up = asyncio.Event()
        self.connections: Connections | None = None

    def run(self) -> None:
        """Serve until a signal to stop, or `stop`.

        Raises:
            SettingsInvalid: the server cannot listen, or another one answers.
            Stopped: a signal to stop came before the server was ready.
        """
        with _handlers_kept(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve())

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin to stop, as a signal would; called again, end at once. For any thread."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._signalled_at = number, now
            self._stopping.set()
        elif now - self._signalled_at >= AGAIN_S:
            self._hurry.set()

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in _STOPS:
                loop.add_signal_handler(number, self._on_signal, number)
            loop.add_signal_handler(signal.SIGHUP, self._hung_up.set)
        async with self._lifespan:
            if self._stopping.is_set():
                raise Stopped(self._signal)
            limits = self._config.connections
            limits = replace(limits, max_connections=allow_open_files(limits.max_connections))
            connections = self.connections = Connections(
                loop,
                self._application,
                limits,
                self._service.budget,
                self._metrics,
                self._config.proxies,
            )
            self._metrics.on_refresh(connections.show)
            servers: list[Acceptor] = []
            beside = _Beside(loop, self._operations, self._service.budget, self._metrics)
            reloading = asyncio.create_task(reload_changed(self._reloads, self._hung_up))
            try:
                servers += await _listen(self._listener, self._protocols(connections), self._config)
                if self._listener.beside:
                    await beside.listen(self._listener.beside, self._config)
                self._on_ready()
                await self._stopping.wait()
                log.info("stopping: running requests get %g s", self._config.grace_s)
                self._service.announce_stop()
                if self._config.drain_delay_s and not _is_orphan():
                    connections.leave()
                    await self._wait(self._hurry, self._config.drain_delay_s)
                    _close(servers)
                    await self._wait(self._hurry, _LAST_ARRIVALS_S)
                await self._drain(servers, connections)
            finally:
                reloading.cancel()
                _close(servers)
                connections.abort()
                await self._wait(connections.empty, _LAST_WORDS_S)
                connections.close()
                beside.close()

    def _protocols(self, connections: Connections) -> Callable[[], asyncio.BaseProtocol]:
        """Makes the protocol of each connection."""
        if (tls := self._tls) is None:
            return lambda: Connection(connections)
        probe, buffer = request_of(self._listener.token), ReadBuffer()
        return lambda: TlsLayer(
            Connection(connections),
            tls.current.context,
            probe,
            buffer,
            connections.count_tls_failure,
        )

    async def _drain(self, servers: Sequence[Acceptor], connections: Connections) -> None:
        _close(servers)
        self._service.drain(self._config.grace_s)
        connections.drain()
        hurry = asyncio.ensure_future(self._hurry.wait())
        grace_s = self._config.grace_s + _LAST_WORDS_S
        drained = (door.drain(grace_s) for door in self._doors)
        empty = asyncio.gather(connections.empty.wait(), *drained)
        await asyncio.wait(
            (hurry, empty),
            timeout=grace_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurry.cancel()
        empty.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await empty

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


class _Beside:
    """The operators' port, which is open for as long as there is anything to see."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        application: ASGIApp | None,
        budget: Budget,
        metrics: Metrics,
    ) -> None:
        self._loop, self._application = loop, application
        self._budget, self._metrics = budget, metrics
        self._connections: Connections | None = None
        self._servers: Sequence[Acceptor] = ()

    async def listen(self, listener: Listener, config: ServerConfig) -> None:
        """Answer on the sockets of `listener`.

        Raises:
            SettingsInvalid: the server cannot listen, or another one answers.
        """
        assert self._application is not None
        application = answering(self._application, listener.token)
        limits = replace(config.connections, max_connections=_OPERATORS)
        self._connections = Connections(
            self._loop, application, limits, self._budget, self._metrics
        )
        connections = self._connections
        self._servers = await _listen(listener, lambda: Connection(connections), config)

    def close(self) -> None:
        """Close the port, and end its connections."""
        _close(self._servers)
        if self._connections:
            self._connections.abort()
            self._connections.close()


async def _listen(
    listener: Listener, protocols: Callable[[], asyncio.BaseProtocol], config: ServerConfig
) -> Sequence[Acceptor]:
    """Take connections of the sockets of `listener`, and have one of them answered."""
    listener.listen(config.backlog)
    loop = asyncio.get_running_loop()
    servers = [
        Acceptor(loop, one, protocols, is_shared=config.is_shared) for one in listener.sockets
    ]
    try:
        await asyncio.to_thread(listener.check_answered)
    except BaseException:
        _close(servers)
        raise
    return servers


def _is_orphan() -> bool:
    """Whether the parent of this process, one of several, is dead: another start wants to bind."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


@contextlib.contextmanager
def _handlers_kept() -> Generator[None, None, None]:
    """Keep the handlers of before; the loop would leave the defaults, which end a process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*_STOPS, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(servers: Sequence[Acceptor]) -> None:
    for server in servers:
        server.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the event loop: uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop
