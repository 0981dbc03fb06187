"""`matryo health`: whether the server with these settings answers on this machine.

Health checks of containers call this command. It loads no model and asks no proxy, and works over
TCP, TLS and a Unix socket.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings

Question = Literal["live", "ready"]

_PATHS: dict[Question, str] = {"live": "/livez", "ready": "/readyz"}
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not a bind
_MOST_BYTES = 65_536
_OK = 200


@dataclass(frozen=True, slots=True)
class Health:
    """What a server answered.

    Attributes:
        is_well: whether the server is live, or ready.
        sentence: says so to an operator, with the reason if it is not.
    """

    is_well: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a server listens; `path` is of a Unix socket, in place of host and port."""

    host: str
    port: int
    path: Path | None
    scheme: str

    def __str__(self) -> str:
        if self.path:
            return str(self.path)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def ask(settings: Settings, question: Question, timeout_s: float) -> Health:
    """Ask the server that has these settings and runs on this machine.

    Args:
        settings: those of the server.
        question: `live` for `/livez`, `ready` for `/readyz`.
        timeout_s: for each step of the request.

    Raises:
        SettingsInvalid: the port is 0, so that only the server knows its port; or the server's
            certificate cannot be read.
    """
    address, tls = _address(settings), None if _asks_beside(settings) else _tls(settings)
    connection = _Connection(address, tls, timeout_s)
    try:
        status, reason = _answer(connection, _PATHS[question])
    except (OSError, http.client.HTTPException) as exc:
        return Health(is_well=False, sentence=f"no answer from {address}: {_cause(exc, settings)}")
    if status == _OK:
        return Health(is_well=True, sentence=f"{question}: {address}")
    because = f": {reason}" if reason else ""
    return Health(is_well=False, sentence=f"not {question}: {address} answered {status}{because}")


def _asks_beside(settings: Settings) -> bool:
    """Whether to ask the operators' port: the other one asks for a client's certificate."""
    return bool(settings.tls_client_ca_file and settings.metrics_port)


def _address(settings: Settings) -> _Address:
    host = _LOOPBACK.get(settings.host, settings.host)
    if settings.metrics_port and _asks_beside(settings):
        return _Address(host, settings.metrics_port, None, "http")
    if settings.uds:
        return _Address("localhost", 0, settings.uds, "")
    if settings.port == 0:
        raise SettingsInvalid(
            "MATRYO_PORT is 0, and only the server knows which port it got. Name the port with "
            "--port."
        )
    scheme = "https" if settings.tls_cert_file else "http"
    return _Address(host, settings.port, None, scheme)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """How to speak with a server that has a certificate; None for plain HTTP.

    A server that asks its clients for certificates is shown its own, which its authorities may have
    signed.
    """
    if not settings.tls_cert_file:
        return None
    # A certificate has the names that callers use, and hardly ever that of the loopback.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls_client_ca_file:
        try:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        except OSError as exc:
            raise SettingsInvalid(
                f"cannot read {settings.tls_cert_file} and its key: {exc.strerror or exc}. Name "
                "files that this user may read in MATRYO_TLS_CERT_FILE and MATRYO_TLS_KEY_FILE."
            ) from exc
    return context


def _cause(exc: Exception, settings: Settings) -> str:
    """Why no answer came, and what to do, for an operator."""
    reason = (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__
    if isinstance(exc, ssl.SSLError) and settings.tls_client_ca_file:
        return (
            f"{reason}. This command shows the server's own certificate, which must be of "
            "MATRYO_TLS_CLIENT_CA_FILE. Or give the server a MATRYO_METRICS_PORT."
        )
    return f"{reason}. Start the server, or give this command the server's MATRYO_ settings."


def _answer(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    """The status of a path, and the reason that a server gives for an answer other than 200."""
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(_MOST_BYTES)
    finally:
        connection.close()
    try:
        said: Any = json.loads(body)
        return response.status, str(said["reason"])
    except (ValueError, LookupError, TypeError):
        return response.status, ""


class _Connection(http.client.HTTPConnection):
    """A connection over TCP or a Unix socket, with or without TLS; asks no proxy."""

    def __init__(self, address: _Address, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        super().__init__(address.host, address.port, timeout=timeout_s)
        self._path, self._tls = address.path, tls

    def connect(self) -> None:
        """Open the connection."""
        if self._path:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        else:
            super().connect()
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock)
