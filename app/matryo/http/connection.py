"""One connection: from bytes to requests, within bounds that hold before anything costs.

httptools parses; this class counts. Whatever a peer sends beside the bodies of its requests (heads,
chunk sizes and their extensions, trailers) is bounded, and so is the time for each of them. A
connection holds at most one request in work: what a peer sends behind that request waits unparsed.
"""

from __future__ import annotations

import asyncio
import enum
import http
import math
import urllib.parse
import uuid
from collections import deque
from typing import Any, cast

import httptools
import orjson
from starlette.types import Scope

from matryo.core.budget import Lease
from matryo.core.errors import Overloaded
from matryo.http.connections import Connections
from matryo.http.errors import INVALID
from matryo.http.exchange import Exchange

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Bytes that frame a body: one for each byte of the body, beside this many.
_FRAMING_BYTES = 64 * 1024
# The parser gets so many bytes at a time, so that a bound is found out soon after it is passed.
_HEAD_SLICE, _BODY_SLICE = 4096, 64 * 1024
_MAX_PIPELINED = 16
_MAX_HELD_BYTES = 64 * 1024
# A head over this many bytes is taken from the memory budget.
_FREE_HEAD_BYTES = 8 * 1024

FIRST_BYTE_S = 20.0
HEAD_S = 20.0
STALLED_S = 30.0
_STALLED_DRAINING_S = 5.0
# A peer must read an answer at this rate on average, or it holds the answer's memory for ever.
_MIN_READ_RATE = 64 * 1024
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


class _Refused(Exception):
    """Raised in the parser's callbacks: the request is refused for what its head says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Connection(asyncio.Protocol):
    """A connection of the server.

    Args:
        owner: all connections, and what they share.

    Attributes:
        phase: see `Phase`.
    """

    _transport: asyncio.Transport

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._loop = owner.loop
        self.phase = Phase.FRESH
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
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._refusal: _Refused | None = None
        self._in_head = False
        self._declining = False
        self._arriving: Exchange | None = None
        self._linger_bytes = 0
        self._framing = self._body_bytes = self._all_body_bytes = 0

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)
        # Paused whenever the socket did not take everything at once.
        self._transport.set_write_buffer_limits(high=0)
        self._server = _address(transport.get_extra_info("sockname"))
        self._client = _address(transport.get_extra_info("peername"))
        if not self._owner.add(self):
            self.phase = Phase.CLOSING
            self._owner.count_drop("full")
            self._write_error(503, "The server has no room for another connection. Try later.")
            self._transport.close()
            return
        self._become(Phase.FRESH, FIRST_BYTE_S)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        del exc
        self._owner.remove(self)
        self._lease.end()
        self._deadline = self._write_deadline = math.inf
        self._held.clear()
        self._headers = []
        for exchange in (self._exchange, self._arriving, *self._queue):
            if exchange:
                exchange.hang_up()
        self._queue.clear()
        self._exchange = self._arriving = None
        self._parser = None
        self.resume_writing()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.phase in (Phase.LINGER, Phase.CLOSING):
            self._linger_bytes -= len(data)
            if self._linger_bytes < 0:
                self.abort()
        elif self._held or self._has_whole_request():
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

    def _has_whole_request(self) -> bool:
        """Whether a request is in work whose body is complete."""
        return self._exchange is not None and not self._exchange.more_body

    def _hold(self, data: bytes | memoryview) -> None:
        """Keep what a peer sends behind a request that is in work."""
        if self._overrun:
            return
        try:
            self._lease.grow(len(data))
        except Overloaded:
            self._end_after_last()
            return
        self._held += data
        if len(self._held) > _MAX_HELD_BYTES:
            self.pause_reading()

    def _parse(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        start = 0
        while start < len(view):
            if self._has_whole_request():
                self._hold(view[start:])
                return
            size = _HEAD_SLICE if self._arriving is None else _BODY_SLICE
            piece = view[start : start + size]
            start += len(piece)
            n_body_bytes = self._all_body_bytes
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as exc:
                rest = bytes(piece[exc.args[0] :]) + view[start:]
                self._decline_upgrade(rest)
                return
            except httptools.HttpParserError:
                self._on_bad_request()
                return
            if self._parser is None or self.phase in (Phase.LINGER, Phase.CLOSING):
                return
            self._framing += len(piece) - (self._all_body_bytes - n_body_bytes)
            if not self._check_framing():
                return
        if self._overrun:
            self._end_after_last()

    def _check_framing(self) -> bool:
        """Refuse a head, or what frames a body, that is too large; whether it is not."""
        if self._in_head:
            if self._framing > MAX_HEAD_BYTES + _HEAD_SLICE:
                self._refuse(431, _too_large())
                return False
            if self._framing - self._lease.held > _FREE_HEAD_BYTES:
                try:
                    self._lease.grow(self._framing - self._lease.held)
                except Overloaded as exc:
                    self._refuse(429, exc.message, {"retry-after": str(exc.retry_after_s)})
                    return False
        elif self._framing > MAX_HEAD_BYTES + _FRAMING_BYTES + self._body_bytes:
            self._refuse(
                400,
                "The body's chunk sizes, chunk extensions and trailers have more than "
                f"{_FRAMING_BYTES} bytes beyond those of the body. Send larger chunks.",
            )
            return False
        return True

    def _on_bad_request(self) -> None:
        if self._refusal:
            self._refuse(self._refusal.status, self._refusal.message)
        else:
            self._refuse(
                400,
                "Invalid HTTP request received. (HINT: this is not well-formed HTTP/1.1.)",
            )

    # --- the parser's callbacks

    def on_message_begin(self) -> None:  # noqa: D102
        self._framing = self._body_bytes = 0
        self._url, self._headers = b"", []
        self._in_head = True
        if self._exchange is None:
            self._become(Phase.HEAD, HEAD_S)

    def on_url(self, url: bytes) -> None:  # noqa: D102
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self._in_head:
            return  # a trailer
        self._headers.append((name.lower(), value))
        if len(self._headers) > MAX_HEADERS:
            raise self._refusing(431, f"The request has more than {MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:  # noqa: D102
        self._in_head = False
        # A head that came in one piece is complete before its bytes are counted.
        n_bytes = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
        if n_bytes > MAX_HEAD_BYTES:
            raise self._refusing(431, _too_large())
        if self._overrun or len(self._queue) >= _MAX_PIPELINED:
            self._overrun = True
            return
        if self._parser.should_upgrade():
            if not any(name == b"upgrade" for name, _ in self._headers):  # CONNECT
                raise self._refusing(400, "This server is no proxy. Send another method.")
            self._declining = True
            return
        exchange = Exchange(
            self,
            self._scope(),
            keep_alive=bool(self._parser.should_keep_alive()) and not self._owner.is_draining,
            expects_continue=any(
                name == b"expect" and value.lower() == b"100-continue"
                for name, value in self._headers
            ),
        )
        self._arriving = exchange
        if self._exchange is None:
            self._start(exchange)
        else:
            self._queue.append(exchange)

    def on_body(self, piece: bytes) -> None:  # noqa: D102
        self._body_bytes += len(piece)
        self._all_body_bytes += len(piece)
        if self._arriving:
            self._arriving.feed(piece)

    def on_message_complete(self) -> None:  # noqa: D102
        self._lease.end()
        if self._arriving:
            self._arriving.end_body()
            self._arriving = None
        if self._has_whole_request():
            self._owner.note_idle(self, None)

    def _refusing(self, status: int, message: str) -> _Refused:
        self._refusal = _Refused(status, message)
        return self._refusal

    def _scope(self) -> Scope:
        url = self._url
        if not url.startswith(b"/"):  # the absolute form, an authority, or `*`
            try:
                parsed = httptools.parse_url(url)
            except httptools.HttpParserInvalidURLError:
                raise self._refusing(400, "The request's URL cannot be read.") from None
            query = parsed.query or b""
            url = (parsed.path or b"/") + (b"?" + query if query else b"")
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
        try:
            path = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise self._refusing(400, "The request's URL is not ASCII. Encode it.") from None
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": self._server,
            "state": {},
        }

    def _decline_upgrade(self, rest: bytes) -> None:
        """Take a request that offered another protocol as the HTTP/1.1 that it is.

        Java's client offers h2c with every request. The parser stops at the offer, before
        the body, so the head is parsed again without it.
        """
        self._declining = False
        dropped = (b"upgrade", b"http2-settings")
        lines = [self._parser.get_method() + b" " + self._url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self._headers if name not in dropped]
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join([*lines, b"", b""]) + rest)

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
        elif self._in_head:
            self._become(Phase.HEAD, HEAD_S)
        else:
            self._become(Phase.IDLE, self._owner.limits.keep_alive_s)
        if self._held and not self._has_whole_request():
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
        self._parser = None
        self._held.clear()
        self._lease.end()
        self._become(Phase.LINGER, _LINGER_DRAINING_S if self._owner.is_draining else LINGER_S)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer without the application, and close: the stream cannot be trusted any more."""
        if self.phase is Phase.CLOSING or self._transport.is_closing():
            return
        self._arriving = None
        if self._has_whole_request():
            # The answer of the request before this one comes first, and is the last.
            self._end_after_last()
            return
        if self._exchange:  # its body is what is refused
            begun, exchange = self._exchange.has_begun, self._exchange
            self._exchange = None
            exchange.hang_up()
            if begun:
                self.abort()
                return
        self._write_error(status, message, headers)
        self._linger(_LINGER_BYTES_GARBAGE)

    def _write_error(
        self, status: int, message: str, headers: dict[str, str] | None = None
    ) -> None:
        error = {"message": message, "type": INVALID, "param": None, "code": None}
        body = orjson.dumps({"error": error})
        lines = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: req_{uuid.uuid4().hex}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            "connection: close",
        ]
        self._owner.count_refusal(status, message)
        self._transport.write("\r\n".join([*lines, "", ""]).encode("ascii", "replace") + body)

    def _close(self) -> None:
        self._become(Phase.CLOSING, STALLED_S)
        self._transport.close()

    # --- what an exchange asks of its connection

    @property
    def date(self) -> bytes:
        """The value of the header `date`."""
        return self._owner.date

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes to the socket."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Return once the socket took everything, or the connection is lost."""
        if self._drained:
            await self._drained

    def expect_reader(self, n_bytes: int) -> None:
        """Expect the peer to read an answer of so many bytes in reasonable time."""
        self._answer_deadline = self._loop.time() + STALLED_S + n_bytes / _MIN_READ_RATE

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
        patience = _STALLED_DRAINING_S if self._owner.is_draining else STALLED_S
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
                self.abort()
        elif now >= self._deadline:
            self._on_deadline()

    def _on_deadline(self) -> None:
        match self.phase:
            case Phase.HEAD:
                self._refuse(408, f"The request's headers did not arrive within {HEAD_S:g} s.")
            case Phase.FRESH | Phase.IDLE:
                self._owner.count_drop("silent" if self.phase is Phase.FRESH else "idle")
                self._close()
            case _:
                self.abort()

    def displace(self) -> None:
        """Close, because a new connection needs the room."""
        self._owner.count_drop("displaced")
        self.abort()

    def drain_requests(self) -> None:
        """Take no further request: the server stops."""
        match self.phase:
            case Phase.FRESH | Phase.IDLE:
                self._close()
            case Phase.HEAD:
                self._refuse(503, "The server is shutting down. Please try again on another one.")
            case Phase.LINGER:
                self._become(Phase.LINGER, _LINGER_DRAINING_S)
            case _:
                if self._exchange:
                    self._exchange.keep_alive = False
                    self._exchange.interrupt()
                if self._drained:
                    self._unsent = self._transport.get_write_buffer_size()
                    self._expect_progress(self._loop.time())

    def abort(self) -> None:
        """Close without writing what is left."""
        self.phase = Phase.CLOSING
        self._transport.abort()


def _too_large() -> str:
    return f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a socket's name, as ASGI has them; None for a Unix socket."""
    if isinstance(name, tuple):
        host, port, *_ = cast("tuple[Any, ...]", name)
        return str(host), int(port)
    return None
