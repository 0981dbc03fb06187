"""A server's two ties to systemd: sockets that systemd has opened, and reports of its state.

Both ties are variables of the environment (sd_listen_fds(3), sd_notify(3)). They are removed when
they are read, because they are meant for this process and not for those that it starts.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("matryo")

_FIRST = 3  # the file descriptor after standard error
_LISTENING = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOTIFY = "NOTIFY_SOCKET"


def take_sockets() -> list[socket.socket]:
    """The listening sockets that systemd gave this process; empty without socket activation."""
    pid, count, _ = (os.environ.pop(name, "") for name in _LISTENING)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    taken: list[socket.socket] = []
    for number in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(number, False)  # noqa: FBT003 - no keyword
        taken.append(socket.socket(fileno=number))
    return taken


class Reporter:
    """Tells systemd what the server does; without systemd it does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.pop(_NOTIFY, "")

    def ready(self) -> None:
        """The server answers."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The server has begun to stop."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # An @ stands for the null byte of an abstract address.
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.connect(address)
                one.sendall(state.encode())
        except OSError as exc:
            log.warning("cannot report %s to %s: %s", state, self._address, exc.strerror or exc)
