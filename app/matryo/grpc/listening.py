"""The port of the gRPC server: held early, so that a taken port is found out before a download.

Each process of a server binds the port itself, with `SO_REUSEPORT`, and so would a second server of
the same user, in silence. The port is therefore tried without that option first, and then held by
sockets that do not listen.
"""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from matryo.core.errors import SettingsInvalid
from matryo.core.fixed import fixed

_OLDEST = (1, 84)  # grpcio; older ones know no registered methods in grpc.aio
# `localhost` may stand for ::1 on a machine where IPv6 is switched off.
_ABSENT = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


def check_installed() -> None:
    """Return if the library for gRPC is installed.

    Raises:
        SettingsInvalid: grpcio is missing, or too old for `matryo.grpc.aio`.
    """
    if importlib.util.find_spec("grpc") is None:
        if bundle := fixed().where:
            raise SettingsInvalid(
                f"MATRYO_GRPC_PORT is set, but {bundle} was made without gRPC. Unset "
                "MATRYO_GRPC_PORT, or make the file again on a machine with matryo[grpc]."
            )
        raise SettingsInvalid(
            "MATRYO_GRPC_PORT is set, but grpcio is not installed. Install matryo[grpc], or unset "
            "MATRYO_GRPC_PORT."
        )
    try:
        found = version("grpcio")
    except PackageNotFoundError:  # in a bundle
        return
    if tuple(map(int, found.split(".")[:2])) < _OLDEST:
        raise SettingsInvalid(
            f"MATRYO_GRPC_PORT is set, but grpcio {found} is too old. Install grpcio "
            f"{'.'.join(map(str, _OLDEST))} or newer, which matryo[grpc] does."
        )


@contextmanager
def held_port(host: str, port: int) -> Generator[int, None, None]:
    """Hold a port of every address of `host` until the block ends.

    Args:
        host: an address, or a name that stands for each of its addresses.
        port: 0 for any that is free.

    Yields:
        The port.

    Raises:
        SettingsInvalid: the port is in use, or the address is not this machine's.
    """
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            addresses = list(dict.fromkeys((family, address) for family, *_, address in found))
            absent: OSError | None = None
            n_held = 0
            for family, (name, _, *rest) in addresses:
                try:
                    with _bound(family, (name, port, *rest), socket.SO_REUSEADDR) as one:
                        port = one.getsockname()[1]
                    stack.enter_context(_bound(family, (name, port, *rest), socket.SO_REUSEPORT))
                    n_held += 1
                except OSError as exc:
                    if exc.errno not in _ABSENT:
                        raise
                    absent = exc
            if absent and not n_held:
                raise absent
        except (OSError, UnicodeError) as exc:
            reason = (isinstance(exc, OSError) and exc.strerror) or exc
            raise SettingsInvalid(
                f"cannot listen for gRPC on {host}:{port}: {reason}. Choose another port with "
                "--grpc-port (MATRYO_GRPC_PORT), or another host with --host (MATRYO_HOST)."
            ) from exc
        yield port


def _bound(family: int, address: tuple[Any, ...], option: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6 and address[0] != "::":  # gRPC's wildcard is of both families
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
