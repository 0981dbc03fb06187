"""From a peer's bytes to requests, within bounds that hold before anything costs.

httptools parses; this module counts. Whatever a peer sends beside the bodies of its requests is
bounded: heads, chunk sizes and their extensions, trailers.
"""

from __future__ import annotations

import urllib.parse
from typing import Any, Protocol

import httptools
from starlette.types import Scope

from matryo.core.budget import Lease
from matryo.http.errors import body

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Bytes that frame a body: one for each byte of the body, beside this many.
_FRAMING_BYTES = 64 * 1024
# The parser gets so many bytes at a time, so that a bound is found out soon after it is passed.
_HEAD_SLICE, _BODY_SLICE = 4096, 64 * 1024
# A head over this many bytes is taken from the memory budget.
_FREE_HEAD_BYTES = 8 * 1024

Address = tuple[str, int]


class Refusal(Exception):
    """A request is refused for what its bytes say; the stream cannot be trusted any more.

    Attributes:
        answer: to the peer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = body(status, message)


class Taker(Protocol):
    """Who takes what a reader finds."""

    @property
    def has_whole_request(self) -> bool:
        """Whether a request is in work whose body is complete: nothing behind it is parsed."""
        ...

    def on_head(self) -> None:
        """Take note that a head begins."""
        ...

    def on_request(self, scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        """Take a request, whose body follows."""
        ...

    def on_body_piece(self, piece: bytes) -> None:
        """Take a piece of the body."""
        ...

    def on_body_end(self) -> None:
        """Take note that the body is complete."""
        ...


class RequestReader:
    """Reads the requests of one connection.

    Args:
        taker: gets them.
        lease: holds the bytes of a large head, and ends with each request.
        server: address of the server's end, as ASGI has it; None for a Unix socket.
        client: address of the peer's end.
        scheme: of the requests, `http` or `https`.

    Attributes:
        in_head: whether a head has begun and is not complete.
        framing: bytes of the present request that are no body.
    """

    def __init__(
        self,
        taker: Taker,
        lease: Lease,
        server: Address | None,
        client: Address | None,
        scheme: str = "http",
    ) -> None:
        self._taker = taker
        self._lease = lease
        self._ends = {"server": server, "client": client, "scheme": scheme}
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._refusal: Refusal | None = None
        self._declining = False
        self._body_bytes = self._all_body_bytes = 0
        self.in_head = False
        self.framing = 0

    def feed(self, data: bytes | bytearray) -> memoryview:
        """Read bytes; returns those that wait, because a whole request is in work.

        Raises:
            Refusal: the bytes are no HTTP, or pass a bound.
            Overloaded: the memory budget has no room for the head.
        """
        rest = memoryview(data)
        while rest and not self._taker.has_whole_request:
            piece = rest[: _HEAD_SLICE if self.in_head or not self._body_bytes else _BODY_SLICE]
            rest = rest[len(piece) :]
            n_body_bytes = self._all_body_bytes
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as exc:
                return self.feed(self._without_upgrade() + piece[exc.args[0] :] + rest)
            except httptools.HttpParserError:
                raise self._refusal or Refusal(
                    400,
                    "Invalid HTTP request received. (HINT: this is not well-formed HTTP/1.1.)",
                ) from None
            self.framing += len(piece) - (self._all_body_bytes - n_body_bytes)
            self._check_framing()
        return rest

    def _check_framing(self) -> None:
        if self.in_head:
            if self.framing > MAX_HEAD_BYTES + _HEAD_SLICE:
                raise _too_large()
            if self.framing - self._lease.held > _FREE_HEAD_BYTES:
                self._lease.grow(self.framing - self._lease.held, "connection")
        elif self.framing > MAX_HEAD_BYTES + _FRAMING_BYTES + self._body_bytes:
            raise Refusal(
                400,
                "The body's chunk sizes, chunk extensions and trailers have more than "
                f"{_FRAMING_BYTES} bytes beyond those of the body. Send larger chunks.",
            )

    # --- the parser's callbacks

    def on_message_begin(self) -> None:  # noqa: D102
        self.framing = self._body_bytes = 0
        self._url, self._headers = b"", []
        self.in_head = True
        self._taker.on_head()

    def on_url(self, url: bytes) -> None:  # noqa: D102
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self.in_head:
            return  # a trailer
        self._headers.append((name.lower(), value))
        if len(self._headers) > MAX_HEADERS:
            raise self._refuse(431, f"The request has more than {MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:  # noqa: D102
        self.in_head = False
        # A head that came in one piece is complete before its bytes are counted.
        n_bytes = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
        if n_bytes > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal
        if self._parser.should_upgrade():
            if not any(name == b"upgrade" for name, _ in self._headers):  # CONNECT
                raise self._refuse(400, "This server is no proxy. Send another method.")
            self._declining = True
            return
        self._taker.on_request(
            self._scope(),
            keep_alive=bool(self._parser.should_keep_alive()),
            expects_continue=any(
                name == b"expect" and value.lower() == b"100-continue"
                for name, value in self._headers
            ),
        )

    def on_body(self, piece: bytes) -> None:  # noqa: D102
        self._body_bytes += len(piece)
        self._all_body_bytes += len(piece)
        self._taker.on_body_piece(piece)

    def on_message_complete(self) -> None:  # noqa: D102
        self._lease.end()
        if not self._declining:
            self._taker.on_body_end()

    def _refuse(self, status: int, message: str) -> Refusal:
        # What a callback raises, the parser replaces by an error of its own.
        self._refusal = Refusal(status, message)
        return self._refusal

    def _scope(self) -> Scope:
        url = self._url
        if not url.startswith(b"/"):  # the absolute form, an authority, or `*`
            try:
                parsed = httptools.parse_url(url)
            except httptools.HttpParserInvalidURLError:
                raise self._refuse(400, "The request's URL cannot be read.") from None
            query = parsed.query or b""
            url = (parsed.path or b"/") + (b"?" + query if query else b"")
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
        try:
            path = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise self._refuse(400, "The request's URL is not ASCII. Encode it.") from None
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "state": {},
            **self._ends,
        }

    def _without_upgrade(self) -> bytes:
        """The head of a request that offered another protocol, as that of plain HTTP/1.1.

        Java's client offers h2c with every request. The parser stops at the offer, before the
        body, so the head is parsed again without it.
        """
        self._declining = False
        dropped = (b"upgrade", b"http2-settings")
        lines = [self._parser.get_method() + b" " + self._url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self._headers if name not in dropped]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])


def _too_large() -> Refusal:
    return Refusal(431, f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.")
