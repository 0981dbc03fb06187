"""TLS between a socket and a connection that stops reading, in memory."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from matryo.core.environment import load_settings
from matryo.core.tls import files_of_http, read_tls
from matryo.http.tls import ReadBuffer, TlsLayer
from tests.certificates import Authority

RECORD = b"a" * 16_384


class Socket(asyncio.Transport):
    """The server's end of a socket: keeps what is written, and whether the server reads."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep bytes."""
        self.sent += data

    def is_closing(self) -> bool:
        """Never: no test closes."""
        return False

    def pause_reading(self) -> None:
        """Note the pause."""
        self.is_read = False

    def resume_reading(self) -> None:
        """Note the end of a pause."""
        self.is_read = True


class Slow(asyncio.Protocol):
    """A connection that pauses after each piece."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.ReadTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the piece, and pause."""
        self.taken.append(data)
        assert self.transport
        self.transport.pause_reading()


class Pair:
    """A layer and a client, joined in memory after their handshake."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        cert, key = authority.issue().write(folder)
        files = files_of_http(load_settings(None, tls_cert_file=str(cert), tls_key_file=str(key)))
        assert files
        self.failures: list[str] = []
        self.connection, self.socket = Slow(), Socket()
        self.layer = TlsLayer(
            self.connection,
            read_tls(files).context,
            b"probe",
            ReadBuffer(),
            self.failures.append,
        )
        self.layer.connection_made(self.socket)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = authority.client_context().wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )
        while True:
            try:
                self.client.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.send()
        self.send()

    def send(self) -> None:
        """Give what the client has written to the layer, and the answer to the client."""
        data = self._outgoing.read()
        self.layer.get_buffer(len(data))[: len(data)] = data
        self.layer.buffer_updated(len(data))
        self._incoming.write(bytes(self.socket.sent))
        self.socket.sent.clear()


@pytest.fixture
async def pair(tmp_path: Path) -> Pair:
    """A layer and a client."""
    return Pair(tmp_path)


async def test_a_pause(pair: Pair) -> None:
    """Records that came before a pause wait encrypted, and come after it without another byte."""
    for record in (RECORD, b"b", b"c"):
        pair.client.write(record)
    pair.send()
    assert pair.connection.taken == [RECORD]
    assert not pair.socket.is_read
    for expected in (2, 3):
        pair.layer.resume_reading()
        assert pair.socket.is_read
        assert len(pair.connection.taken) == expected - 1  # not within the call
        await asyncio.sleep(0)
        assert len(pair.connection.taken) == expected
        assert not pair.socket.is_read
    assert pair.connection.taken == [RECORD, b"b", b"c"]


async def test_a_large_write(pair: Pair) -> None:
    """A write of many records goes to the socket as a whole, none of it in a buffer of TLS."""
    pair.layer.write(b"x" * 300_000)
    assert len(pair.socket.sent) > 300_000
    assert pair.layer._outgoing.pending == 0
