"""One request and its answer: what ASGI's `receive` and `send` mean on a connection.

Source: ASGI's HTTP specification 2.3, https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Iterable
from typing import Protocol

from starlette.types import Message, Scope

from matryo.core.errors import CallerGone, Stopping

# So much is handed to the transport at a time, which copies what the socket does not take.
_SLICE_BYTES = 256 * 1024
# So small a body goes out in one piece with its head.
_JOINED_BYTES = 64 * 1024
# A body of more bytes than these waits in the socket until the application asks for it.
_WAITING_BYTES = 64 * 1024

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


_NO_BODY = frozenset((204, 304))


class Wire(Protocol):
    """What an exchange needs of its connection."""

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes to the socket."""
        ...

    async def drain(self) -> None:
        """Return once the socket took everything, or the connection is lost."""
        ...

    def expect_reader(self, n_bytes: int) -> None:
        """Expect the peer to read an answer of so many bytes in reasonable time."""
        ...

    def pause_reading(self) -> None:
        """Read nothing more from the socket."""
        ...

    def resume_reading(self) -> None:
        """Go on reading from the socket."""
        ...

    def on_answered(self, exchange: Exchange) -> None:
        """Take note that the answer is written."""
        ...

    def on_ended(self, exchange: Exchange) -> None:
        """Take note that the application is done with the request."""
        ...

    @property
    def date(self) -> bytes:
        """The value of the header `date`."""
        ...

    @property
    def is_at_end(self) -> bool:
        """Whether the answer in work is the connection's last, because the server stops."""
        ...


class Exchange:
    """A request and its answer.

    Args:
        wire: the connection.
        scope: ASGI's description of the request.
        keep_alive: whether the connection may carry another request afterwards.
        expects_continue: whether the caller sends the body only when it is asked to.

    Attributes:
        more_body: whether a part of the body is still to come.
        is_answered: whether the answer is complete.
        n_received: bytes of the body that have come.
        n_unsent: bytes of the answer that are made and not handed to the socket.
    """

    __slots__ = (
        "_body",
        "_expects_continue",
        "_gone",
        "_has_news",
        "_head",
        "_interrupted",
        "_is_chunked",
        "_left",
        "_started",
        "_waiting",
        "_wire",
        "is_answered",
        "keep_alive",
        "more_body",
        "n_received",
        "n_unsent",
        "scope",
    )

    def __init__(
        self, wire: Wire, scope: Scope, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self._wire = wire
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = expects_continue
        self.more_body = True
        self.is_answered = False
        self.n_received = self.n_unsent = 0
        self._body = bytearray()
        self._waiting: list[asyncio.Future[Message]] = []
        self._has_news = False
        self._gone = False
        self._interrupted = False
        self._started = False
        self._head = b""
        self._is_chunked = False
        self._left = 0

    # --- the connection's side

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._body += piece
        self.n_received += len(piece)
        if len(self._body) > _WAITING_BYTES:
            self._wire.pause_reading()
        self._tell()

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.more_body = False
        self._tell()

    def interrupt(self) -> None:
        """Refuse the rest of the body, if there is one: the server stops."""
        if self.more_body:
            self._interrupted = True
            self._tell()

    def hang_up(self, reason: str = "hang_up") -> None:
        """Note that the caller is gone.

        Args:
            reason: of `matryo_aborts_total`.
        """
        if not self._gone:
            self.scope["state"]["ended"] = reason
        self._gone = True
        self._body.clear()
        self._tell()

    @property
    def has_begun(self) -> bool:
        """Whether a part of the answer may be written."""
        return self._started

    def end(self) -> None:
        """Note that the application is done, with or without a complete answer."""
        self._wire.on_ended(self)

    def _tell(self) -> None:
        """Complete what the application waits for."""
        self._has_news = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                self._complete(one)

    def _complete(self, receiving: asyncio.Future[Message]) -> None:
        """Give what came to a call of `receive`."""
        self._has_news = False
        if self._gone or self.is_answered:
            receiving.set_result({"type": "http.disconnect"})
        elif self._interrupted:
            receiving.set_exception(Stopping())
        else:
            body, self._body = self._body, bytearray()
            more = self.more_body
            receiving.set_result({"type": "http.request", "body": bytes(body), "more_body": more})

    # --- the application's side

    def receive(self) -> asyncio.Future[Message]:
        """The next piece of the body; after the body, wait for the caller to hang up.

        The future is done already where nothing has to wait. It has `Stopping` if the server stops
        before the body is complete.
        """
        if self._expects_continue and not self._gone:
            self._expects_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        receiving: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if self._gone or self.is_answered:
            self._complete(receiving)
            return receiving
        self._wire.resume_reading()
        # To resume may bring the next piece at once.
        if self._has_news:
            self._complete(receiving)
        else:
            self._waiting.append(receiving)
        return receiving

    async def send(self, message: Message) -> None:
        """Write a part of the answer; returns once the socket took the part.

        Raises:
            CallerGone: the connection is lost.
            RuntimeError: the application breaks ASGI's rules.
        """
        if self._gone:
            raise CallerGone
        kind = message["type"]
        if kind == "http.response.start" and not self._started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self._started and not self.is_answered:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} out of turn")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Compose the head, which goes out with the first piece of the body."""
        self._started = True
        self._expects_continue = False
        lines = [status_line(status)]
        has_length = is_closing = False
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            match name.lower():
                case b"content-length":
                    has_length, self._left = True, int(value)
                case b"connection":
                    is_closing = b"close" in value.lower()
                case _:
                    pass
        lines.append(b"date: %b\r\n" % self._wire.date)
        # The rest of a body that nobody will read cannot be told from a next request.
        self.keep_alive = self.keep_alive and not (
            is_closing or self.more_body or self._wire.is_at_end
        )
        if not self.keep_alive and not is_closing:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in _NO_BODY:
            self._left = 0
        elif not has_length:
            self._is_chunked = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self._is_chunked
            if self._is_chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("a header has a line break")
        self._head = head + b"\r\n"
        self._wire.expect_reader(self._left)

    async def _send_body(self, body: bytes | memoryview, *, more: bool) -> None:
        body = self._framed(body, more=more)
        if self._head:
            head, self._head = self._head, b""
            if len(body) <= _JOINED_BYTES:
                body = head + body
            else:
                self._wire.write(head)
        view = body if len(body) <= _SLICE_BYTES else memoryview(body)
        for start in range(0, len(view) or 1, _SLICE_BYTES):
            self._wire.write(view[start : start + _SLICE_BYTES])
            self.n_unsent = max(0, len(view) - start - _SLICE_BYTES)
            await self._wire.drain()
            if self._gone:
                raise CallerGone
        if not more:
            self.is_answered = True
            self._tell()
            self._wire.on_answered(self)

    def _framed(self, body: bytes | memoryview, *, more: bool) -> bytes | memoryview:
        """A piece of the answer as it goes over the wire."""
        if self.scope["method"] == "HEAD":
            return b""
        if self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        self._left -= len(body)
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the answer's length is not its Content-Length")
        return body
