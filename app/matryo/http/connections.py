"""All connections of a server process: how many there may be, and what they share."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import resource
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from starlette.types import ASGIApp

from matryo.core.budget import Budget
from matryo.core.errors import CallerGone
from matryo.core.metrics import Metrics
from matryo.core.networks import Networks
from matryo.http.exchange import Exchange

log = logging.getLogger("matryo.http")

_SWEEP_S = 0.5
_WARNING_S = 10.0  # between two log lines about the same
# Files beside connections: the model's, the log's, the loop's own, and those that libraries open.
_RESERVED_FILES = 64


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of connections.

    Attributes:
        max_connections: of this process.
        keep_alive_s: seconds that a connection may stay open without a request.
        head_s: seconds to the first byte of a connection, a TLS handshake included, and for the
            head of a request.
        write_s: seconds without progress of an answer.
        min_read_rate: bytes a second at which a peer must read an answer on average. Slower, it
            would hold the answer's memory for ever.
    """

    max_connections: int = 4096
    keep_alive_s: float = 75.0
    head_s: float = 20.0
    write_s: float = 30.0
    min_read_rate: int = 64 * 1024


class Member(Protocol):
    """What is asked of a connection."""

    def check_time(self, now: float) -> None:
        """End what took too long."""
        ...

    def displace(self) -> None:
        """Close, because a new connection needs the room."""
        ...

    def drain_requests(self) -> None:
        """Take no further request."""
        ...

    def abort(self, reason: str = ...) -> None:
        """Close without writing what is left."""
        ...

    @property
    def n_arriving(self) -> int:
        """Bytes that have come of a body that is not complete."""
        ...

    @property
    def n_unsent(self) -> int:
        """Bytes of an answer that the peer has not taken."""
        ...


class Connections:
    """The connections of one server process. All of it belongs to the event loop.

    Args:
        loop: the event loop.
        application: answers the requests.
        limits: of the connections.
        budget: what large heads are taken from.
        metrics: what is counted.
        proxies: peers whose headers say who calls.

    Attributes:
        is_leaving: an answer is the last of its connection.
        is_draining: no connection takes a further request.
        date: the value of the header `date`, half a second old at most.
        empty: is set while there is no connection and no request.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        application: ASGIApp,
        limits: ConnectionLimits,
        budget: Budget,
        metrics: Metrics,
        proxies: Networks | None = None,
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.proxies = Networks(()) if proxies is None else proxies
        self.budget = budget
        self._application = application
        self._metrics = metrics
        self._all: set[Member] = set()
        # Connections without admitted work, the one that is so for longest first: those without a
        # request, those with a part of a head, those with a part of a body.
        self._idle: tuple[dict[Member, None], ...] = ({}, {}, {})
        self._ranks: dict[Member, int] = {}  # which of these each of them is in
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._n_crowded, self._next_warning = 0, 0.0
        self.is_leaving = self.is_draining = False
        self.date = b""
        self.empty = asyncio.Event()
        self.empty.set()
        self._sweep()

    def __len__(self) -> int:
        """Number of open connections."""
        return len(self._all)

    # --- members

    def add(self, member: Member) -> bool:
        """Take a connection in; False if there is no room, and none can be made."""
        if len(self._all) >= self.limits.max_connections:
            longest_idle = next((member for some in self._idle for member in some), None)
            if longest_idle is None:
                return False
            longest_idle.displace()
            # Its `connection_lost` comes in a later turn of the loop.
            self.remove(longest_idle)
        self._all.add(member)
        self.empty.clear()
        self._metrics.connections.inc()
        return True

    def remove(self, member: Member) -> None:
        """Forget a connection, if it is known."""
        if member in self._all:
            self._all.remove(member)
            self.note_idle(member, None)
            self._metrics.connections.dec()
            self._check_empty()

    def note_idle(self, member: Member, rank: int | None) -> None:
        """Note whether a connection may be closed for a new one.

        Args:
            member: the connection.
            rank: 0 to 2, the lowest goes first; None if a request of the connection is in work.
        """
        if (before := self._ranks.pop(member, None)) is not None:
            del self._idle[before][member]
        if rank is not None and member in self._all:
            self._idle[rank][member] = None
            self._ranks[member] = rank

    def leave(self) -> None:
        """Let every connection end after its next answer, which says so.

        A proxy then keeps no connection that it could use in the very moment in which the server
        closes it.
        """
        self.is_leaving = True

    def drain(self) -> None:
        """Let every connection end after the request that it has."""
        self.is_leaving = self.is_draining = True
        for member in list(self._all):
            member.drain_requests()
        self._check_empty()

    def abort(self) -> None:
        """End every connection and every request now."""
        for member in list(self._all):
            member.abort("stopping")
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Stop looking after connections."""
        if self._timer:
            self._timer.cancel()

    def _check_empty(self) -> None:
        if not self._all and not self._tasks:
            self.empty.set()

    # --- requests

    def run(self, exchange: Exchange) -> None:
        """Let the application answer a request."""
        task = self.loop.create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._check_empty()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._application(exchange.scope, exchange.receive, exchange.send)
        except CallerGone:
            pass
        except Exception:
            log.exception("the application failed to answer")
        finally:
            exchange.end()

    # --- time

    def _sweep(self) -> None:
        self._timer = self.loop.call_later(_SWEEP_S, self._sweep)
        self.date = email.utils.formatdate(usegmt=True).encode()
        now = self.loop.time()
        for member in list(self._all):
            member.check_time(now)

    # --- what is counted

    def show(self) -> None:
        """Set the gauges of bytes in flight to what is true now."""
        in_flight = self._metrics.bytes_in_flight
        in_flight.labels("in").set(sum(member.n_arriving for member in self._all))
        in_flight.labels("out").set(sum(member.n_unsent for member in self._all))

    def count_refusal(self, status: int) -> None:
        """Count and log a request that was refused before it reached the application."""
        self._metrics.http_refusals.labels(str(status)).inc()
        log.info("refused unread: %s", HTTPStatus(status).phrase, extra={"status": status})

    def count_tls_failure(self, reason: str) -> None:
        """Count and log a connection that ends because TLS failed."""
        self.count_drop("tls")
        log.info("TLS failed: %s", reason)

    def count_drop(self, reason: str) -> None:
        """Count a connection that the server ended, and log now and then that there is no room."""
        self._metrics.dropped_connections.labels(reason).inc()
        if reason in ("displaced", "full"):
            self._n_crowded += 1
            now = self.loop.time()
            if now >= self._next_warning:
                self._next_warning = now + _WARNING_S
                log.warning(
                    "all %d connections are in use; %d were closed or refused since the last such "
                    "line (MATRYO_MAX_CONNECTIONS)",
                    self.limits.max_connections,
                    self._n_crowded,
                )
                self._n_crowded = 0


def allow_open_files(max_connections: int) -> int:
    """Raise this process's limit of open files for so many connections, as far as is allowed.

    Returns:
        The number of connections that fit, at least 1.

    Source: getrlimit(2); the soft limit is 1024 on most systems, the hard one is far higher.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = _RESERVED_FILES + _n_open_files()
    wanted = max_connections + reserved
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft = max(soft, raised)
    if soft == resource.RLIM_INFINITY:
        return max_connections
    fitting = max(1, min(max_connections, soft - reserved))
    if fitting < max_connections:
        log.warning(
            "at most %d connections at a time, in place of MATRYO_MAX_CONNECTIONS=%d: this "
            "process may open %d files (ulimit -n)",
            fitting,
            max_connections,
            soft,
        )
    return fitting


def _n_open_files() -> int:
    try:
        return len(list(Path("/proc/self/fd").iterdir()))
    except OSError:  # not on macOS
        return _RESERVED_FILES
