"""One connection: from bytes to requests, within bounds that hold before anything costs.

httptools parses; this class counts. Whatever a peer sends beside the bodies of its requests (heads,
chunk sizes and their extensions, trailers) is bounded, and so is the time for each of them. A
connection holds at most one request in work: what a peer sends behind that request waits unparsed.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Scope

from matryo.core.budget import Lease
from matryo.core.errors import NotReady, Overloaded, Stopping
from matryo.http.connections import Connections
from matryo.http.errors import body, error_answer
from matryo.http.exchange import Exchange, status_line
from matryo.http.forwarded import is_proxy, note_origin
from matryo.http.reader import Refusal, RequestReader
from matryo.service.request_id import new_request_id

_MAX_PIPELINED = 16
_MAX_HELD_BYTES = 64 * 1024

_FRESH_DRAINING_S, _STALLED_DRAINING_S = 0.5, 5.0
# A refusal may come before its body does. Closing at once would reset the connection, and many
# clients would lose the answer; so the rest of the body is dropped unparsed for this long.
LINGER_S, _LINGER_DRAINING_S = 30.0, 1.0
_LINGER_BYTES = 256 * 1024 * 1024
_LINGER_BYTES_GARBAGE = 16 * 1024 * 1024  # what is no HTTP has no end that is worth to wait for


class Phase(enum.Enum):
    """What the connection waits for."""

    FRESH = enum.auto()  # its first byte
    IDLE = enum.auto()  # the next request
    HEAD = enum.auto()  # the rest of a head
    BUSY = enum.auto()  # the rest of a body, or the application
    LINGER = enum.auto()  # the end of a body that nobody reads
    CLOSING = enum.auto()  # the last bytes of an answer to go out


# Which connections make room for new ones, the lowest first. One that waits for the rest of a body
# is busy, but no work of its request was admitted.
_RANKS = {Phase.FRESH: 0, Phase.IDLE: 0, Phase.LINGER: 0, Phase.HEAD: 1, Phase.BUSY: 2}


class Connection(asyncio.Protocol):
    """A connection of the server.

    Args:
        owner: all connections, and what they share.

    Attributes:
        phase: see `Phase`.
        ended_by: why the server ends the connection, as a reason of `matryo_aborts_total`; the
            caller hung up, unless something else is known.
    """

    _transport: asyncio.Transport

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._loop = owner.loop
        self.phase = Phase.FRESH
        self.ended_by = "hang_up"
        self._deadline = math.inf
        self._write_deadline = math.inf
        self._answer_deadline = math.inf
        self._unsent = 0
        self._drained: asyncio.Future[None] | None = None
        self._reading = True
        self._held = bytearray()
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._overrun = False
        self._lease = Lease(owner.budget)
        self._arriving: Exchange | None = None
        self._linger_bytes = 0

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)
        # Paused whenever the socket did not take everything at once.
        self._transport.set_write_buffer_limits(high=0)
        here, peer = (_address(transport.get_extra_info(one)) for one in ("sockname", "peername"))
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._reader: RequestReader | None = RequestReader(self, self._lease, here, peer, scheme)
        self._is_of_proxy = is_proxy(peer, self._owner.proxies, is_local=here is None)
        if not self._owner.add(self):
            self.phase = Phase.CLOSING
            self._owner.count_drop("full")
            self._owner.count_refusal(503)
            self._write_error(error_answer(NotReady("The server has no room for a connection.")))
            self._transport.close()
            return
        self._become(Phase.FRESH, self._owner.limits.head_s)
        if self._owner.is_draining:  # accepted just before the socket was closed
            self.drain_requests()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        del exc
        self._owner.remove(self)
        self._lease.end()
        self._deadline = self._write_deadline = math.inf
        self._held.clear()
        for exchange in (self._exchange, self._arriving, *self._queue):
            if exchange:
                exchange.hang_up(self.ended_by)
        self._queue.clear()
        self._exchange = self._arriving = None
        self._reader = None
        self.resume_writing()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.phase in (Phase.LINGER, Phase.CLOSING):
            self._linger_bytes -= len(data)
            if self._linger_bytes < 0:
                self.abort()
        elif self._held or self.has_whole_request:
            self._hold(data)
        else:
            self._parse(data)

    def pause_writing(self) -> None:  # noqa: D102
        if self._drained is None:
            self._drained = self._loop.create_future()
            self._unsent = self._transport.get_write_buffer_size()
            self._expect_progress(self._loop.time())

    def resume_writing(self) -> None:  # noqa: D102
        self._write_deadline = math.inf
        drained, self._drained = self._drained, None
        if drained and not drained.done():
            drained.set_result(None)

    # --- bytes to requests

    @property
    def has_whole_request(self) -> bool:
        """Whether a request is in work whose body is complete: nothing behind it is parsed."""
        return self._exchange is not None and not self._exchange.more_body

    def _parse(self, data: bytes | bytearray) -> None:
        if self._reader is None:
            return
        try:
            rest = self._reader.feed(data)
        except Refusal as exc:
            self._refuse(exc.answer)
            return
        except Overloaded as exc:
            self._refuse(error_answer(exc))
            return
        if self._overrun:
            self._end_after_last()
        elif rest:
            self._hold(rest)

    def _hold(self, data: bytes | memoryview) -> None:
        """Keep what a peer sends behind a request that is in work."""
        if self._overrun:
            return
        try:
            self._lease.grow(len(data), "connection")
        except Overloaded:
            self._end_after_last()
            return
        self._held += data
        if len(self._held) > _MAX_HELD_BYTES:
            self.pause_reading()

    def on_head(self) -> None:
        """Give the head its time."""
        if self._exchange is None:
            self._become(Phase.HEAD, self._owner.limits.head_s)

    def on_request(self, scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        """Start a request, or queue it behind the one in work."""
        if self._overrun or len(self._queue) >= _MAX_PIPELINED:
            self._overrun = True
            return
        if self._is_of_proxy:
            note_origin(scope, self._owner.proxies)
        exchange = Exchange(self, scope, keep_alive=keep_alive, expects_continue=expects_continue)
        self._arriving = exchange
        if self._exchange is None:
            self._start(exchange)
        else:
            self._queue.append(exchange)

    def on_body_piece(self, piece: bytes) -> None:
        """Pass a piece of a body on."""
        if self._arriving:
            self._arriving.feed(piece)

    def on_body_end(self) -> None:
        """Pass the end of a body on."""
        if self._arriving:
            self._arriving.end_body()
            self._arriving = None
        if self.has_whole_request:
            self._owner.note_idle(self, None)

    # --- requests to answers

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._become(Phase.BUSY)
        if not exchange.more_body:
            self._owner.note_idle(self, None)
        self._owner.run(exchange)

    def on_answered(self, exchange: Exchange) -> None:
        """Go on with the next request, or close."""
        if exchange is not self._exchange:
            return
        self._exchange = None
        self._answer_deadline = math.inf
        if exchange.more_body:
            self._arriving = None
            self._linger(_LINGER_BYTES)
        elif not exchange.keep_alive or self._owner.is_draining:
            self._close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request, as far as the peer has sent one."""
        if self._queue:
            self._start(self._queue.popleft())
        elif self._reader and self._reader.in_head:
            self._become(Phase.HEAD, self._owner.limits.head_s)
        else:
            self._become(Phase.IDLE, self._owner.limits.keep_alive_s)
        if self._held and not self.has_whole_request:
            held, self._held = self._held, bytearray()
            self._lease.end()
            self._parse(held)
        if not self._held and not self._overrun:
            self.resume_reading()

    def on_ended(self, exchange: Exchange) -> None:
        """Close, if the application ended without a complete answer."""
        if not exchange.is_answered and exchange is self._exchange:
            self.abort()

    def _end_after_last(self) -> None:
        """Answer the requests so far, and drop what is behind them."""
        self._overrun = True
        self._held.clear()
        last = self._queue[-1] if self._queue else self._exchange
        if last:
            last.keep_alive = False
        self._arriving = None
        self.pause_reading()

    def _linger(self, max_bytes: int) -> None:
        """Let the peer read the answer before the connection closes."""
        self._linger_bytes = max_bytes
        self._reader = None
        self._held.clear()
        self._lease.end()
        self._become(Phase.LINGER, _LINGER_DRAINING_S if self._owner.is_draining else LINGER_S)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    def _refuse(self, answer: Response) -> None:
        """Answer without the application, and close: the stream cannot be trusted any more."""
        if self.phase is Phase.CLOSING or self._transport.is_closing():
            return
        self._arriving = None
        if self.has_whole_request:
            # The answer of the request before this one comes first, and is the last.
            self._end_after_last()
            return
        if self._exchange:  # its body is what is refused
            begun, exchange = self._exchange.has_begun, self._exchange
            self._exchange = None
            exchange.scope["state"]["refused"] = answer.status_code
            exchange.hang_up()
            if begun:
                self.abort()
                return
            self._write_error(answer)
        else:
            self._owner.count_refusal(answer.status_code)
            self._write_error(answer)
        self._linger(_LINGER_BYTES_GARBAGE)

    def _write_error(self, answer: Response) -> None:
        answer.headers["x-request-id"] = new_request_id()
        answer.headers["connection"] = "close"
        lines = [status_line(answer.status_code)]
        lines += [b"%b: %b\r\n" % header for header in answer.raw_headers]
        self._transport.write(b"".join((*lines, b"\r\n", bytes(answer.body))))

    def _close(self) -> None:
        self._become(Phase.CLOSING, self._owner.limits.write_s)
        self._transport.close()

    # --- what an exchange asks of its connection

    @property
    def date(self) -> bytes:
        """The value of the header `date`."""
        return self._owner.date

    @property
    def is_at_end(self) -> bool:
        """Whether the answer in work is the connection's last, because the server stops."""
        return self._owner.is_leaving and not (self._queue or self._held)

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes to the socket."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Return once the socket took everything, or the connection is lost."""
        if self._drained:
            await self._drained

    def expect_reader(self, n_bytes: int) -> None:
        """Expect the peer to read an answer of so many bytes in reasonable time."""
        limits = self._owner.limits
        spent_s = limits.write_s + n_bytes / limits.min_read_rate
        self._answer_deadline = self._loop.time() + spent_s

    def pause_reading(self) -> None:
        """Read nothing more from the socket."""
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading from the socket."""
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # --- time, room and the end

    def _become(self, phase: Phase, seconds: float = math.inf) -> None:
        self.phase = phase
        self._deadline = math.inf if seconds == math.inf else self._loop.time() + seconds
        self._owner.note_idle(self, _RANKS.get(phase))

    def _expect_progress(self, now: float) -> None:
        patience = self._owner.limits.write_s
        if self._owner.is_draining:
            patience = min(patience, _STALLED_DRAINING_S)
        self._write_deadline = min(now + patience, self._answer_deadline)

    def check_time(self, now: float) -> None:
        """End what took too long."""
        if now >= self._write_deadline:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent and now < self._answer_deadline:
                self._unsent = unsent
                self._expect_progress(now)
            else:
                self._owner.count_drop("slow_reader")
                self.abort("slow_reader")
        elif now >= self._deadline:
            self._on_deadline()

    def _on_deadline(self) -> None:
        match self.phase:
            case Phase.HEAD:
                most_s = self._owner.limits.head_s
                message = f"The request's headers did not arrive within {most_s:g} s."
                self._refuse(body(408, message))
            case Phase.FRESH | Phase.IDLE:
                self._owner.count_drop("silent" if self.phase is Phase.FRESH else "idle")
                self._close()
            case _:
                self.abort()

    def displace(self) -> None:
        """Close, because a new connection needs the room."""
        self._owner.count_drop("displaced")
        self.abort("displaced")

    def drain_requests(self) -> None:
        """Take no further request: the server stops."""
        match self.phase:
            case Phase.FRESH:  # whoever has just connected is about to send a request
                self._become(Phase.FRESH, _FRESH_DRAINING_S)
            case Phase.IDLE:
                self._close()
            case Phase.HEAD:
                self._refuse(error_answer(Stopping()))
            case Phase.LINGER:
                self._become(Phase.LINGER, _LINGER_DRAINING_S)
            case _:
                if self._exchange:
                    self._exchange.keep_alive = False
                    self._exchange.interrupt()
                if self._drained:
                    self._unsent = self._transport.get_write_buffer_size()
                    self._expect_progress(self._loop.time())

    @property
    def n_arriving(self) -> int:
        """Bytes that have come of a body that is not complete."""
        return self._arriving.n_received if self._arriving else 0

    @property
    def n_unsent(self) -> int:
        """Bytes of an answer that the peer has not taken."""
        if self._drained is None:
            return 0
        unsent = self._exchange.n_unsent if self._exchange else 0
        return unsent + self._transport.get_write_buffer_size()

    def abort(self, reason: str = "hang_up") -> None:
        """Close without writing what is left.

        Args:
            reason: of `matryo_aborts_total`.
        """
        self.ended_by = reason
        self.phase = Phase.CLOSING
        self._transport.abort()


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a socket's name, as ASGI has them; None for a Unix socket."""
    if isinstance(name, tuple):
        host, port, *_ = cast("tuple[Any, ...]", name)
        return str(host), int(port)
    return None
