"""The request that a server sends itself, to know that its own sockets lead to it."""

from __future__ import annotations

import secrets
import socket
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

_HEADER = "x-matryo-probe"
_NAME = _HEADER.encode()
_STATUS = 204
_MOST_BYTES = 65_536


def request_of(token: str) -> bytes:
    """The bytes of the request; plain HTTP, whatever else the server speaks on its sockets."""
    lines = ["GET /livez HTTP/1.1", "Host: localhost", f"{_HEADER}: {token}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def ask(family: int, address: str | tuple[Any, ...], token: str, timeout_s: float) -> bool:
    """Whether the server that answers at `address` knows `token`; no proxy is asked.

    Args:
        family: of the address.
        address: as `socket.connect` takes it.
        token: of the server that should answer.
        timeout_s: for each step of the request.

    Raises:
        OSError: nobody answers.
    """
    answer = b""
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(address)
        connection.sendall(request_of(token))
        while b"\r\n" not in answer and len(answer) < _MOST_BYTES:
            piece = connection.recv(_MOST_BYTES)
            if not piece:
                break
            answer += piece
    return answer.startswith(f"HTTP/1.1 {_STATUS} ".encode())


def answering(application: ASGIApp, token: str) -> ASGIApp:
    """The application, with an answer to the requests that show `token`.

    The application itself sees no such request: neither its log nor its metrics count one.
    """
    expected = token.encode()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            shown = [value for name, value in scope["headers"] if name == _NAME]
            if shown and secrets.compare_digest(shown[0], expected):
                await send({"type": "http.response.start", "status": _STATUS, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await application(scope, receive, send)

    return answer
