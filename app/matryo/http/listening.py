"""The sockets of a server: bound early, so that a taken address is found out before a download.

A bound socket does not listen: callers are refused until the server is ready. Two servers can
bind one address in that state, and then one of them fails to listen. A server therefore counts
as ready only after it has answered a request that it sent itself (`Listener.check_answered`).
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matryo.core.errors import SettingsInvalid
from matryo.core.networks import address_of
from matryo.core.settings import Settings
from matryo.http.probe import ask
from matryo.http.unix import SocketFile, bind_file

ADDRESS = "address with --host, --port or --uds (MATRYO_HOST, MATRYO_PORT, MATRYO_UDS)"
METRICS_PORT = "port with MATRYO_METRICS_PORT"
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
        file: of a Unix socket that this server has bound; None for others.
        token: known to this server alone; marks the request that the server sends itself.
        scheme: `http` or `https`.
        remedy: names the settings of the address.
        beside: the sockets of the operators' port; None if they have none of their own.
    """

    sockets: list[socket.socket]
    file: SocketFile | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    scheme: str = "http"
    remedy: str = ADDRESS
    beside: Listener | None = None

    @property
    def port(self) -> int:
        """The TCP port of every socket."""
        return int(self.sockets[0].getsockname()[1])

    @property
    def path(self) -> Path | None:
        """The path of a Unix socket; None for TCP."""
        if self.file:
            return self.file.path
        one = self.sockets[0]
        return Path(one.getsockname()) if one.family == socket.AF_UNIX else None

    @property
    def url(self) -> str:
        """Where a client of this machine reaches the server; a Unix socket takes any host."""
        if self.path:
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
            with _explained(self._name(one), self.remedy):
                one.listen(backlog)

    def check_answered(self) -> None:
        """Return once this server has answered a request to each socket.

        Raises:
            SettingsInvalid: no answer came, or the answer of another server.
        """
        for one in self.sockets:
            name = self._name(one)
            address = str(self.file.bound) if self.file else _reachable(one)
            with _explained(name, self.remedy):
                is_ours = ask(one.family, address, self.token, _PROBE_S)
            if not is_ours:
                raise SettingsInvalid(
                    f"another server answers on {name}. Stop that server, or choose another "
                    f"{self.remedy}."
                )

    def publish(self) -> None:
        """Give a Unix socket its path.

        Raises:
            SettingsInvalid: another process listens at the path, or the path is no socket.
        """
        if self.file:
            with _explained(str(self.file.path), self.remedy):
                self.file.publish()

    def close(self) -> None:
        """Close the sockets, those beside them, and remove the file of a Unix socket."""
        self.close_sockets()
        if self.file:
            self.file.remove()

    def close_sockets(self) -> None:
        """Close the sockets, and those beside them."""
        for one in self.sockets:
            one.close()
        if self.beside:
            self.beside.close_sockets()

    def _name(self, one: socket.socket) -> str:
        if self.file:
            return str(self.file.path)
        if one.family == socket.AF_UNIX:
            return str(one.getsockname())
        host, port = one.getsockname()[:2]
        return f"{host}:{port}"


def bind_all(
    settings: Settings, path: Path | None = None, given: Sequence[socket.socket] = ()
) -> Listener:
    """The sockets of a server, and beside them those of the operators' port, if there is one.

    Args:
        settings: of the server.
        path: of a Unix socket for the server itself; None for TCP.
        given: sockets for the server itself that another process has bound; empty to bind them.

    Raises:
        SettingsInvalid: an address is in use, or not this machine's.
    """
    listener = Listener(list(given)) if given else bind(settings.host, settings.port, path)
    if settings.metrics_port is not None:
        try:
            listener.beside = bind(settings.host, settings.metrics_port, remedy=METRICS_PORT)
        except SettingsInvalid:
            listener.close()
            raise
    return listener


def bind(host: str, port: int, path: Path | None = None, *, remedy: str = ADDRESS) -> Listener:
    """Sockets that hold every address of `host`, or a Unix socket, and do not listen yet.

    Args:
        host: an address, or a name that stands for each of its addresses.
        port: 0 for any that is free, the same for every address.
        path: of a Unix socket, in place of host and port; None for TCP.
        remedy: names the settings of the address.

    Raises:
        SettingsInvalid: an address is in use, or not this machine's.
    """
    if path:
        with _explained(str(path), remedy):
            one, file = bind_file(path)
        return Listener([one], file)
    with _explained(f"{host}:{port}", remedy):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, *_, address in found))
        for _ in range(_PORT_TRIES - 1 if port == 0 else 0):
            try:
                return Listener(_bind_each(addresses), remedy=remedy)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:  # free on the first address alone
                    raise
        return Listener(_bind_each(addresses), remedy=remedy)


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


def _reachable(one: socket.socket) -> Any:  # noqa: ANN401 - a pair, four values, or a path
    """The address at which this machine reaches a socket."""
    if one.family == socket.AF_UNIX:
        return one.getsockname()
    host, *rest = one.getsockname()
    return (_ANY.get(host, host), *rest)


@contextmanager
def _explained(name: str, remedy: str) -> Generator[None, None, None]:
    """Turn the system's refusals into a sentence for the operator."""
    try:
        yield
    except (OSError, UnicodeError) as exc:
        reason = (isinstance(exc, OSError) and exc.strerror) or exc
        raise SettingsInvalid(
            f"cannot listen on {name}: {reason}. Choose another {remedy}."
        ) from exc
