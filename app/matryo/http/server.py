"""The HTTP server: uvicorn, taught our manners.

Faults of HTTP itself (a request line that is none, headers without end) get OpenAI's error
too; a signal drains and exits 0; a connection that sends nothing does not stay for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
import sys
import uuid
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import httptools
import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from matryo.http.errors import INVALID
from matryo.http.listening import BACKLOG, Listener
from matryo.http.probe import answering

# Above the 60 s that most proxies keep idle connections, so that they are the first to
# close one: a server that closes first races with the proxy's next request.
_KEEP_ALIVE_S = 75
_HEADERS_S = 20
_MAX_HEADER_BYTES = 64 * 1024
# A refusal may come before its body does. Closing at once would reset the connection, and many
# clients would lose the answer; so the rest of the body is read and dropped for this long.
_LINGER_S = 30


class Protocol(HttpToolsProtocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_headers = False
    _declining = False
    _linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # noqa: D102
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._unset_keepalive_if_required()
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._decline_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._in_headers and self._header_bytes > _MAX_HEADER_BYTES:
            self._too_large()

    def on_message_begin(self) -> None:  # noqa: D102
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._deadline = self.loop.call_later(_HEADERS_S, self._too_slow)

    def on_headers_complete(self) -> None:  # noqa: D102
        self._headers_done()
        # A head that came in one piece is complete before its bytes are counted.
        fields = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.url) + fields > _MAX_HEADER_BYTES:
            self._too_large()
            raise httptools.HttpParserError("headers too large")
        offers = any(name == b"upgrade" for name, _ in self.headers)
        self._declining = offers and self.parser.should_upgrade()
        if not self._declining:
            super().on_headers_complete()

    def on_message_complete(self) -> None:  # noqa: D102
        if not self._declining:
            self._linger_done()
            super().on_message_complete()

    def on_response_complete(self) -> None:  # noqa: D102
        early = not self.pipeline and self.cycle.more_body
        super().on_response_complete()
        if early and not self.transport.is_closing():
            self._linger = self.loop.call_later(_LINGER_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._headers_done()
        self._linger_done()
        super().connection_lost(exc)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Take a request that offered another protocol as the HTTP/1.1 that it is.

        Java's client offers h2c with every request. The parser stops at the offer, before
        the body, so the request is parsed again without it.
        """
        if not self._declining:  # CONNECT
            self.send_400_response("Unsupported upgrade.")
            return
        dropped = (b"upgrade", b"http2-settings")
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers if name not in dropped]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        self._refuse(400, f"{msg} (HINT: this is not well-formed HTTP/1.1.)")

    def _too_slow(self) -> None:
        self._refuse(408, f"The request's headers did not arrive within {_HEADERS_S} s.")

    def _too_large(self) -> None:
        self._refuse(431, f"The request's headers are larger than {_MAX_HEADER_BYTES} bytes.")

    def _linger_done(self) -> None:
        if self._linger:
            self._linger.cancel()
            self._linger = None

    def _headers_done(self) -> None:
        self._in_headers = False
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, message: str) -> None:
        """Answer without an application, and close: the stream cannot be trusted any more."""
        self._headers_done()
        if self.transport.is_closing():
            return
        if self._answers_earlier():
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        error = {"message": message, "type": INVALID, "param": None, "code": None}
        body = orjson.dumps({"error": error})
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: req_{uuid.uuid4().hex}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _answers_earlier(self) -> bool:
        """Whether a whole request before this one is in work: its answer is the next, and last."""
        if not self.cycle:  # the first request
            return False
        return not (self.cycle.response_complete or self.cycle.more_body)


class Server(uvicorn.Server):
    """The server of one process; `run` it with the sockets of its listener."""

    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        listener: Listener,
        on_ready: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._on_ready = on_ready
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report that the server is ready once it has answered its own request.

        Raises:
            SettingsInvalid: the server cannot listen, or another one answers.
            SystemExit: the application cannot start; the log has the cause.
        """
        loop = self._loop = asyncio.get_running_loop()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(1)
        self.servers = []
        try:
            # Not left to the loop: uvloop loses the error of a failed `listen`.
            self._listener.listen()
            for one in sockets or ():
                server = await loop.create_server(self._connection, sock=one, backlog=BACKLOG)
                self.servers.append(server)
            self.started = True
            await asyncio.to_thread(self._listener.check_answered)
            self._on_ready()
        except Exception:
            await self.shutdown(sockets)
            raise

    def _connection(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop came."""
        # A signal may come between any two instructions: leave the rest to the loop.
        if not self.should_exit and self._loop:
            self._loop.call_soon_threadsafe(self._on_exit)
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take signals while running, and keep them."""
        with super().capture_signals():
            try:
                yield
            finally:
                # uvicorn would raise the signal again, and a clean drain would exit 143.
                self._captured_signals.clear()


def build_server(
    application: ASGIApp,
    listener: Listener,
    *,
    grace_s: float,
    on_ready: Callable[[], None],
    on_drain: Callable[[float], None],
) -> Server:
    """A server that runs until SIGTERM or SIGINT, and ends when all that ran is answered.

    Args:
        application: the ASGI application.
        listener: the sockets to serve on.
        grace_s: seconds that running requests get after the signal.
        on_ready: called once the server has answered a request of its own.
        on_drain: called with `grace_s` at the signal, on the event loop.
    """
    options: dict[str, Any] = {
        "http": Protocol,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        # What drains is ours to end, with a proper answer; this is for what does not end then.
        "timeout_graceful_shutdown": int(grace_s) + 3,
    }
    config = uvicorn.Config(answering(application, listener.token), **options)
    return Server(config, listener, on_ready, lambda: on_drain(grace_s))
