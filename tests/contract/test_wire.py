"""Any bytes, cut anywhere: answers stay well-formed, and a connection leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from matryo.core.budget import Budget
from matryo.core.metrics import Metrics
from matryo.http.connection import Connection
from matryo.http.connections import ConnectionLimits, Connections

POST = b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"POST /e HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"
OLD = b"GET /a HTTP/1.0\r\n\r\n"
ABSOLUTE = b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"POST /e HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 11\r\n\r\nhello world"
)
EXPECT = (
    b"POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\nhello world"
)
REQUESTS = (POST, CHUNKED, GET, HEAD, ABSOLUTE, UPGRADE)


class Wire(asyncio.Transport):
    """A transport whose peer reads everything at once."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.sent = b""
        self.closed = False

    def write(self, data: Any) -> None:
        """Keep what the server sends."""
        self.sent += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        """Nothing is ever buffered."""
        return 0

    def can_write_eof(self) -> bool:
        """TCP can."""
        return True

    def write_eof(self) -> None:
        """Do nothing."""

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def is_closing(self) -> bool:
        """Whether the server closed."""
        return self.closed

    def close(self) -> None:
        """Note that the server closed."""
        self.closed = True

    abort = close


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with path and body; `/e` alone reads the body."""
    body = b""
    if scope["path"] == "/e":
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
    content = scope["path"].encode("utf-8", "replace") + b" " + body
    length = str(len(content)).encode()
    headers = [(b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Answers:
    """The answers in a stream of bytes, read by the parser that clients use."""

    def __init__(self, raw: bytes) -> None:
        self.found: list[tuple[int, bytes]] = []
        self._body = b""
        self.parser: Any = httptools.HttpResponseParser(self)
        self.parser.feed_data(raw)

    def on_body(self, body: bytes) -> None:
        """Collect a body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Keep an answer."""
        self.found.append((self.parser.get_status_code(), self._body))
        self._body = b""


async def talk(pieces: list[bytes]) -> tuple[bytes, Budget, Connections, list[Any]]:
    """Send pieces over one connection, then hang up; what the server sent and kept."""
    loop = asyncio.get_running_loop()
    faults: list[Any] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    budget = Budget(1_000_000)
    owner = Connections(loop, echo, ConnectionLimits(), budget, Metrics(CollectorRegistry()))
    wire = Wire()
    connection = Connection(owner)
    connection.connection_made(wire)
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    for _ in range(400):  # turns of the loop: more than the pipelined requests need
        await asyncio.sleep(0)
    connection.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    owner.close()
    return wire.sent, budget, owner, faults


def cut(raw: bytes, cuts: list[int]) -> list[bytes]:
    """`raw` in pieces."""
    places = sorted({place % (len(raw) + 1) for place in cuts} | {0, len(raw)})
    return [raw[start:end] for start, end in itertools.pairwise(places)]


@given(
    st.lists(st.sampled_from([one for one in REQUESTS if one is not HEAD]), min_size=1, max_size=9),
    st.lists(st.integers(0, 2000), max_size=12),
)
@settings(deadline=None, max_examples=150)
def test_cuts_change_nothing(requests: list[bytes], cuts: list[int]) -> None:
    """Valid requests give the same answers in order, wherever the stream is cut."""
    raw = b"".join(requests)
    sent, budget, owner, faults = asyncio.run(talk(cut(raw, cuts)))
    expected = [(200, b"/a " if one in (GET, ABSOLUTE) else b"/e hello world") for one in requests]
    assert Answers(sent).found == expected
    assert not faults
    assert not budget.held
    assert not len(owner)


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_damaged_streams(data: st.DataObject) -> None:
    """Damaged requests give well-formed answers or none; nothing is held and nothing raised."""
    pool = (*REQUESTS, OLD, EXPECT, b"\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n")
    raw = bytearray(b"".join(data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=30))))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        match data.draw(st.sampled_from("fdir")):
            case "f":
                raw[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
            case "d":
                del raw[place : place + data.draw(st.integers(1, 30))]
            case "i":
                raw[place:place] = data.draw(st.binary(max_size=20))
            case _:
                raw += raw[place : place + 40]
    cuts = data.draw(st.lists(st.integers(0, 4000), max_size=8))
    sent, budget, owner, faults = asyncio.run(talk(cut(bytes(raw), cuts)))
    assert not sent or sent.startswith(b"HTTP/1.1 ")
    for status, _ in [] if b"HEAD" in raw else Answers(sent).found:
        assert status in (100, 200, 400, 431)
    assert not faults, faults[0]
    assert not budget.held
    assert not len(owner)
