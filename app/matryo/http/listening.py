"""The sockets of a server: bound early, so that a taken address is found out before a download.

A bound socket does not listen: callers are refused until the server is ready. Two servers can
bind one address in that state, and then one of them fails to listen. A server therefore counts
as ready only after it has answered a request that it sent itself (`Listener.check_answered`).
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matryo.core.errors import SettingsInvalid
from matryo.core.networks import address_of
from matryo.http.probe import ask
from matryo.http.unix import SocketFile, bind_file

_PROBE_S = 10
_PORT_TRIES = 20
# `localhost` may stand for ::1 on a machine where IPv6 is switched off.
_ABSENT = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not a bind


@dataclass
class Listener:
    """The bound sockets of one server; all processes of the server share them.

    Attributes:
        sockets: one for each address.
        file: of the Unix socket; None for TCP.
        token: known to this server alone; marks the request that the server sends itself.
        scheme: `http` or `https`.
    """

    sockets: list[socket.socket]
    file: SocketFile | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    scheme: str = "http"

    @property
    def port(self) -> int:
        """The TCP port of every socket."""
        return int(self.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where a client of this machine reaches the server; a Unix socket takes any host."""
        if self.file:
            return f"{self.scheme}://localhost"
        host, port = _reachable(self.sockets[0])[:2]
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def open_address(self) -> str | None:
        """An address that other machines may reach; None if only this machine can call."""
        for one in self.sockets:
            if one.family != socket.AF_UNIX:
                address = address_of(one.getsockname()[0])
                if address and not address.is_loopback:
                    return self._name(one)
        return None

    def listen(self, backlog: int) -> None:
        """Accept connections.

        Args:
            backlog: connections that wait to be accepted.

        Raises:
            SettingsInvalid: another process listens on an address by now.
        """
        for one in self.sockets:
            with _explained(self._name(one)):
                one.listen(backlog)

    def check_answered(self) -> None:
        """Return once this server has answered a request to each socket.

        Raises:
            SettingsInvalid: no answer came, or the answer of another server.
        """
        for one in self.sockets:
            name = self._name(one)
            address = str(self.file.bound) if self.file else _reachable(one)
            with _explained(name):
                is_ours = ask(one.family, address, self.token, _PROBE_S)
            if not is_ours:
                raise SettingsInvalid(
                    f"another server answers on {name}. Stop that server, or choose another "
                    "address with --host, --port or --uds (MATRYO_HOST, MATRYO_PORT, MATRYO_UDS)."
                )

    def publish(self) -> None:
        """Give a Unix socket its path.

        Raises:
            SettingsInvalid: another process listens at the path, or the path is no socket.
        """
        if self.file:
            with _explained(str(self.file.path)):
                self.file.publish()

    def close(self) -> None:
        """Close the sockets, and remove the file of a Unix socket."""
        for one in self.sockets:
            one.close()
        if self.file:
            self.file.remove()

    def _name(self, one: socket.socket) -> str:
        if self.file:
            return str(self.file.path)
        host, port = one.getsockname()[:2]
        return f"{host}:{port}"


def bind(host: str, port: int, path: Path | None = None) -> Listener:
    """Sockets that hold every address of `host`, or a Unix socket, and do not listen yet.

    Args:
        host: an address, or a name that stands for each of its addresses.
        port: 0 for any that is free, the same for every address.
        path: of a Unix socket, in place of host and port; None for TCP.

    Raises:
        SettingsInvalid: an address is in use, or not this machine's.
    """
    if path:
        with _explained(str(path)):
            one, file = bind_file(path)
        return Listener([one], file)
    with _explained(f"{host}:{port}"):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, *_, address in found))
        for _ in range(_PORT_TRIES - 1 if port == 0 else 0):
            try:
                return Listener(_bind_each(addresses))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:  # free on the first address alone
                    raise
        return Listener(_bind_each(addresses))


def _bind_each(addresses: list[tuple[Any, Any]]) -> list[socket.socket]:
    """A socket for each (family, address) that this machine has, all on one port."""
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, (host, port, *rest) in addresses:
            if sockets and port == 0:
                port = sockets[0].getsockname()[1]  # noqa: PLW2901
            try:
                one = socket.socket(family, socket.SOCK_STREAM)
            except OSError as exc:
                absent = exc
                continue
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(addresses) > 1:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((host, port, *rest))
            except OSError as exc:
                if exc.errno not in _ABSENT:
                    raise
                absent = exc
                sockets.pop().close()
        if absent and not sockets:
            raise absent
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


def _reachable(one: socket.socket) -> tuple[Any, ...]:
    """The address at which this machine reaches a socket."""
    host, *rest = one.getsockname()
    return (_ANY.get(host, host), *rest)


@contextmanager
def _explained(name: str) -> Generator[None, None, None]:
    """Turn the system's refusals into a sentence for the operator."""
    try:
        yield
    except (OSError, UnicodeError) as exc:
        reason = (isinstance(exc, OSError) and exc.strerror) or exc
        raise SettingsInvalid(
            f"cannot listen on {name}: {reason}. Choose another address with --host, --port or "
            "--uds (MATRYO_HOST, MATRYO_PORT, MATRYO_UDS)."
        ) from exc
