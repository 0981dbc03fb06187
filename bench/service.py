"""Starts and stops a server as an operator does, for benchmarks."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class Service:
    """`matryo serve` in a process of its own; a context manager.

    Args:
        flags: options of `matryo serve`, except host and port.
        environ: environment variables in addition to those of this process.
        command: the command to run; another one than `matryo serve` for stand-ins.
        log: file of the server's standard error; None for that of this process.

    Attributes:
        port: port of the server.
        ready_s: seconds from the start of the process until /readyz answered 200.
    """

    def __init__(
        self,
        *flags: str,
        environ: dict[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "matryo", "serve"),
        log: IO[bytes] | None = None,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._command = [*command, *flags, "--port", str(self.port)]
        self._environ = os.environ | {"MATRYO_LOG_LEVEL": "warning"} | (environ or {})
        self._log = log
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command, env=self._environ, stderr=self._log
        )
        while True:
            # http.client asks no proxy, whatever http_proxy says.
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            if self._process.poll() is not None:
                raise SystemExit(f"{' '.join(self._command)} ended before it was ready")
            time.sleep(0.02)
        self.ready_s = time.perf_counter() - started
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(60)

    def stop(self, within_s: float) -> tuple[float, int | None]:
        """Send SIGTERM; returns the seconds until the process ended, and its exit status.

        A process that does not end `within_s` is killed, and its status is None.
        """
        started = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        try:
            status: int | None = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = None
        return time.perf_counter() - started, status

    @property
    def pid(self) -> int:
        """Id of the server's process."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Exit status of a server that has ended by itself; None while it runs."""
        return self._process.poll()

    @property
    def rss_mb(self) -> float:
        """Current resident memory of the server's process, in MB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
