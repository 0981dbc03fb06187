"""TLS between a socket and a connection, from the first byte of the handshake on.

The event loops have TLS too, but show a connection to its protocol only after the handshake. Peers
that never finish a handshake would be in no bound of `Connections`. Their TLS also keeps bytes in
buffers of its own, which the deadline of a slow reader would not see. Here the connection exists
from the accept on, and every byte that the socket did not take is in the socket's transport.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from matryo.core.tls_keeper import TlsKeeper

_DAY_S = 86_400.0
_READ_BYTES = 64 * 1024
_RECORD_BYTES = 16 * 1024  # as much as one record of TLS holds
# Text for people whose client speaks plain HTTP to this port.
_NO_TLS = b"This port speaks HTTPS, and the request is plain HTTP. Write https:// in the URL.\n"
_NO_TLS_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_NO_TLS), _NO_TLS)
)


class ReadBuffer:
    """Memory that all connections of an event loop read into, one after the other."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_READ_BYTES))


class TlsLayer(asyncio.Transport, asyncio.BufferedProtocol):
    """The server's end of TLS: a protocol for the socket, a transport for the connection.

    What the connection writes before the handshake is complete is dropped: only a refusal can be,
    and nobody could read it. Neither side may renegotiate.

    Args:
        connection: gets what the peer sends.
        context: has the server's certificate.
        probe: these bytes, sent in place of a handshake, are a request of this server itself and
            are answered without TLS. A server that asks for clients' certificates has none of
            its own to show.
        buffer: of the event loop.
        on_failure: called with the reason when TLS fails through what a peer sends.
    """

    _socket: asyncio.Transport

    def __init__(
        self,
        connection: asyncio.Protocol,
        context: ssl.SSLContext,
        probe: bytes,
        buffer: ReadBuffer,
        on_failure: Callable[[str], None],
    ) -> None:
        super().__init__({"sslcontext": context})
        self._connection = connection
        self._probe: bytes | None = probe
        self._buffer = buffer
        self._on_failure = on_failure
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_shaken = False  # whether the handshake is complete
        self._is_plain = False  # whether this is the server's own probe
        self._is_over = False  # whether nothing more is written, nor decrypted
        self._is_paused = False

    # --- the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._socket = cast("asyncio.Transport", transport)
        self._connection.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._is_over = True
        self._connection.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: D102
        del sizehint
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        data = self._buffer.view[:nbytes]
        if self._is_over or self._is_plain:  # counted by the connection, and dropped
            self._connection.data_received(bytes(data))
            return
        probe, self._probe = self._probe, None
        if probe and secrets.compare_digest(bytes(data), probe):
            self._is_plain = True
            self._connection.data_received(probe)
            return
        self._incoming.write(data)
        if self._is_shaken or self._shake_hands():
            self._decrypt()

    def eof_received(self) -> bool | None:  # noqa: D102
        return self._connection.eof_received()

    def pause_writing(self) -> None:  # noqa: D102
        self._connection.pause_writing()

    def resume_writing(self) -> None:  # noqa: D102
        self._connection.resume_writing()

    # --- TLS

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether the handshake is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as exc:
            self._fail(exc)
        else:
            self._is_shaken = True
            self._flush()
        return self._is_shaken

    def _decrypt(self) -> None:
        """Give the connection what has come, as far as the connection reads."""
        while not (self._is_paused or self._is_over or self._socket.is_closing()):
            try:
                data = self._tls.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as exc:
                self._fail(exc)
                return
            if not data:  # the peer sends nothing more
                if not self._connection.eof_received():
                    self.close()
                return
            self._connection.data_received(data)
        if not self._is_over:
            self._flush()  # such as the answer to a new key

    def _flush(self) -> None:
        """Hand to the socket what TLS has written."""
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())

    def _fail(self, exc: ssl.SSLError) -> None:
        """Close, because the peer does not speak TLS as this server does."""
        self._on_failure(_reason(exc))
        self._is_over = True
        if exc.reason == "HTTP_REQUEST":
            self._socket.write(_NO_TLS_ANSWER)
        else:
            self._flush()  # says why
        self._socket.close()

    def _end(self) -> None:
        """Tell the peer that nothing more comes, once."""
        if self._is_shaken and not self._is_over:
            with suppress(ssl.SSLError):  # the peer has not ended its side, and need not
                self._tls.unwrap()
            self._flush()
        self._is_over = True

    # --- the connection's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if self._is_plain:
            self._socket.write(data)
        if not self._is_shaken or self._is_over or self._socket.is_closing():
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as exc:
            self._fail(exc)
            return
        self._flush()

    def can_write_eof(self) -> bool:
        """Each side of TLS ends for itself."""
        return self._socket.can_write_eof()

    def write_eof(self) -> None:
        """End this side; what the peer still sends is given to the connection as it came."""
        self._end()
        self._socket.write_eof()

    def close(self) -> None:
        """Close once everything is sent."""
        if not self._socket.is_closing():
            self._end()
            self._socket.close()

    def abort(self) -> None:
        """Close now."""
        self._is_over = True
        self._socket.abort()

    def is_closing(self) -> bool:
        """Whether the socket closes, or is closed."""
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        """Give the connection nothing more."""
        self._is_paused = True
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Give the connection what has come, in a later turn of the loop, and go on reading."""
        self._is_paused = False
        self._socket.resume_reading()
        if self._is_shaken:
            asyncio.get_running_loop().call_soon(self._decrypt)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the connection has to wait before the next write."""
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket did not take."""
        return self._socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's
        """A fact of the connection, as asyncio names them."""
        own = super().get_extra_info(name)
        return self._socket.get_extra_info(name, default) if own is None else own


def _reason(exc: ssl.SSLError) -> str:
    """What went wrong, in the words of OpenSSL; nothing of what the peer sent is in them."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the client's certificate: {exc.verify_message}"
    return (exc.reason or "a fault without a name").lower().replace("_", " ")


@asynccontextmanager
async def warning_daily(keepers: Iterable[TlsKeeper]) -> AsyncGenerator[None, None]:
    """Until the block ends, log a warning once a day for each certificate that expires soon."""
    task = asyncio.create_task(_warn_daily(list(keepers)))
    try:
        yield
    finally:
        task.cancel()


async def _warn_daily(keepers: list[TlsKeeper]) -> None:
    while True:
        await asyncio.sleep(_DAY_S)
        for keeper in keepers:
            keeper.warn_of_expiry()
