"""A server of this machine to measure: the operator's own settings, open to this machine alone."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from matryo.commands.serve import serve_on
from matryo.core import logging as logs
from matryo.core.errors import MatryoError, SettingsInvalid
from matryo.core.lifetime import end_with_parent
from matryo.core.settings import Settings
from matryo.http.listening import Listener, bind

_HOST = "127.0.0.1"
# What would keep the clients of a benchmark from asking, or open a second port.
_NOT_MEASURED = (
    "uds",
    "grpc_port",
    "metrics_port",
    "api_keys",
    "keys",
    "keys_file",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
)
_STOP_S = 30.0


class MeasuredServer:
    """A server in a process of its own; a context manager.

    Args:
        settings: of the server; its keys, certificates and other sockets are left out.

    Attributes:
        port: of the server.
        ready_s: seconds from the start of the process until it answered.
    """

    def __init__(self, settings: Settings) -> None:
        defaults = {name: Settings.model_fields[name].default for name in _NOT_MEASURED}
        own = {"host": _HOST, "port": 0, "processes": 1, "log_level": "warning"}
        self._settings = settings.model_copy(update=defaults | own)
        self._context = multiprocessing.get_context("spawn")
        self.port, self.ready_s = 0, 0.0

    def __enter__(self) -> Self:
        started = time.perf_counter()
        listener = bind(_HOST, 0)
        self.port = listener.port
        ours, theirs = self._context.Pipe(duplex=False)
        self._process = self._context.Process(
            target=_serve, args=(self._settings, listener, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        listener.close()
        wait([ours, self._process.sentinel])
        try:
            ours.recv_bytes()
        except EOFError:
            self._process.join()
            raise SettingsInvalid(
                "The server to measure ended before it was ready; it says above why. Try the same "
                "settings with matryo serve."
            ) from None
        self.ready_s = time.perf_counter() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def resident_mb(self, *, peak: bool = False) -> float | None:
        """Resident memory of the process in MB, now or at its highest; None where nobody says."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except OSError:  # not on macOS
            return None
        name = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024 / 1e6


def _serve(settings: Settings, listener: Listener, ready: Connection) -> None:
    if parent := multiprocessing.parent_process():
        end_with_parent(parent.join, _STOP_S)
    logs.configure(settings.log_level, settings.log_format)

    def on_ready() -> None:
        ready.send_bytes(b"ready")

    try:
        serve_on(settings, listener, on_ready)
    except MatryoError as exc:
        logs.fatal(exc.message)
        raise SystemExit(1) from exc
