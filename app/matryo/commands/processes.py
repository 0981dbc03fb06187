"""Several server processes on one socket: one address, one drain, one set of metrics.

Each process has its own event loop and scheduler and an equal part of the cores; packed
weights are mapped, so that they are in memory once. The parent holds the socket, starts
what dies anew, and passes a signal to stop on to all.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from prometheus_client import multiprocess

from matryo.core import logging as logs
from matryo.core.errors import MatryoError
from matryo.core.settings import Settings
from matryo.http.listening import Listener
from matryo.store.files import temporary_directory

log = logging.getLogger("matryo")

_RESTART_S, _POLL_S = 1.0, 0.2
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"

Serve = Callable[[Settings, Listener, Callable[[], None]], None]


def run_processes(
    settings: Settings, listener: Listener, serve: Serve, on_ready: Callable[[], None]
) -> None:
    """Serve in `settings.processes` processes until SIGTERM or SIGINT.

    Args:
        settings: of every process.
        listener: bound, not listening; all of them accept on it.
        serve: runs one server; called in each process with a callback for when it is ready.
        on_ready: called once all of them are.

    Raises:
        SystemExit: a process ended before all of them were ready.
        SettingsInvalid: there is no temporary folder that this user may write.
    """
    folder = tempfile.mkdtemp(prefix="matryo-metrics-", dir=temporary_directory())
    # prometheus_client decides by this variable, when it is first imported.
    os.environ[_METRICS_DIR] = folder
    try:
        _Supervisor(settings, listener, serve, on_ready).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """The parent: starts processes, and ends them all at once."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        serve: Serve,
        on_ready: Callable[[], None],
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._ready: Any = self._context.SimpleQueue()
        self._listener = listener
        self._args = (settings, listener, serve, self._ready)
        self._on_ready = on_ready
        self._wanted = settings.processes
        self._n_ready = 0
        self._stopping = False
        self._children: list[BaseProcess] = []

    def run(self) -> None:
        """Until a signal to stop, and all have ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._children = [self._start() for _ in range(self._wanted)]
            while not self._stopping:
                wait([child.sentinel for child in self._children], timeout=_POLL_S)
                self._count_ready()
                self._replace_dead()
        finally:
            self._stop()
            # While anyone holds it open, the kernel takes connections that nobody will answer.
            self._listener.close()
            for child in self._children:
                child.join()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop()

    def _start(self) -> BaseProcess:
        child = self._context.Process(target=_child, args=self._args)
        child.start()
        return child

    def _stop(self) -> None:
        self._stopping = True
        for child in self._children:
            if child.pid and child.is_alive():
                os.kill(child.pid, signal.SIGTERM)

    def _count_ready(self) -> None:
        while not self._ready.empty():
            self._ready.get()
            self._n_ready += 1
            if self._n_ready == self._wanted:
                log.info("%d processes are ready", self._wanted)
                self._on_ready()

    def _replace_dead(self) -> None:
        for place, child in enumerate(self._children):
            if self._stopping or child.is_alive():
                continue
            if self._n_ready < self._wanted:  # it never served: another would not either
                raise SystemExit(child.exitcode or 1)
            log.error("process %s ended with %s; starting another", child.pid, child.exitcode)
            # Its gauges are dropped; its counters stay counted.
            multiprocess.mark_process_dead(child.pid)  # pyright: ignore[reportUnknownMemberType]
            time.sleep(_RESTART_S)
            if not self._stopping:  # a signal may have come while we slept
                self._children[place] = self._start()


def _child(settings: Settings, listener: Listener, serve: Serve, queue: Any) -> None:  # noqa: ANN401
    # A terminal sends Ctrl-C to all of us; the parent's SIGTERM is the one that counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(settings.log_level, settings.log_format)
    try:
        serve(settings, listener, lambda: queue.put(os.getpid()))
    except MatryoError as exc:
        logs.fatal(exc.message)
        sys.exit(1)
    except Exception:
        # multiprocessing would print a traceback, which is no log line.
        log.exception("a server process failed")
        sys.exit(1)
