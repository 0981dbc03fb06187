"""Several server processes on one socket: one address, one drain, one set of metrics.

Each process has its own event loop and scheduler and an equal part of the cores, on one NUMA node
if the nodes can be shared evenly. Packed weights are mapped, so that they are in memory once. The
parent holds the socket, starts what dies anew, and passes signals on. No process outlives the
parent, even a killed one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import cast

from prometheus_client import multiprocess

from matryo.commands.metrics_folder import metrics_folder
from matryo.core import logging as logs
from matryo.core import shared
from matryo.core.errors import MatryoError
from matryo.core.lifetime import end_with_parent
from matryo.core.nodes import node_cores, share_nodes
from matryo.core.settings import Settings
from matryo.core.signals import AGAIN_S, Stopped, held_back
from matryo.http.listening import Listener

log = logging.getLogger("matryo")

_STEADY_S = 60.0  # a process that served as long does not die again and again
_MOST_RESTART_S = 60.0
_MARGIN_S = 10.0  # after delay and grace, for what a process does at its end
_HURRY_S = 3.0

Serve = Callable[[Settings, Listener, Callable[[], None], int | None], None]


def run_processes(
    settings: Settings,
    listener: Listener,
    serve: Serve,
    on_ready: Callable[[], None],
    cores: int,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve in `settings.processes` processes until SIGTERM or SIGINT.

    Args:
        settings: of every process.
        listener: bound, not listening; all of them accept on it.
        serve: runs one server; called in each process with a callback for when it is ready, and
            with the number of its cores.
        on_ready: called once all of them are.
        cores: that each process uses.
        on_stop: called when the server begins to stop.

    Raises:
        SystemExit: a process ended before all of them were ready, or had to be killed.
        SettingsInvalid: there is no temporary folder that this user may write.
        Stopped: a signal came before all of them were ready.
    """
    with metrics_folder() as folder:
        # prometheus_client decides by this variable, when it is first imported.
        os.environ[shared.VARIABLE] = str(folder)
        _Supervisor(settings, listener, serve, on_ready, cores, on_stop).run()


def restart_s(n_deaths: int) -> float:
    """Seconds until a process that died `n_deaths` times in a row is replaced."""
    return min(2.0 ** (n_deaths - 1), _MOST_RESTART_S)


def most_stop_s(settings: Settings) -> float:
    """Seconds from SIGTERM until a process that still runs is killed."""
    return settings.drain_delay_s + settings.grace_s + _MARGIN_S


@dataclass
class _Place:
    """A process, and those that replace it.

    Attributes:
        node: the cores that the process may run on; empty for every core.
        process: None between two processes.
        ready: has a message once the process is ready; None afterwards.
        ready_at: when that was, on the monotonic clock; None before.
        start_at: when to start the next process, if there is none.
        n_deaths: of processes in a row that served for less than a minute.
    """

    node: frozenset[int] = frozenset()
    process: BaseProcess | None = None
    ready: Connection | None = None
    ready_at: float | None = None
    start_at: float = 0.0
    n_deaths: int = 0


class _Supervisor:
    """The parent: starts processes, and ends them all at once."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        serve: Serve,
        on_ready: Callable[[], None],
        cores: int,
        on_stop: Callable[[], None],
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._settings, self._listener, self._serve = settings, listener, serve
        self._on_ready, self._cores, self._on_stop = on_ready, cores, on_stop
        self._places = [_Place() for _ in range(settings.processes)]
        nodes = node_cores() if settings.pin_processes else []
        shared = share_nodes(settings.processes, cores, nodes)
        if shared:
            log.info("each process runs on one of %d NUMA nodes", len(nodes))
        for place, node in zip(self._places, shared, strict=False):  # no node: every core
            place.node = node
        self._are_ready = False
        self._woken = -1
        # What signal handlers note, and the loop acts on:
        self._stopped_by = 0
        self._stopped_at = 0.0
        self._in_a_hurry = self._hung_up = False

    def run(self) -> None:
        """Until a signal to stop, and all have ended."""
        # It inherits what is ignored now: SIGHUP does not end the tracker, nor a process.
        resource_tracker.ensure_running()
        with self._signals():
            try:
                while not self._is_stopping():
                    self._start_missing()
                    self._wait(self._until_restart())
                    self._note_ready()
                    self._note_dead()
                    self._pass_hangup_on()
            finally:
                are_killed = self._end_all()
        if are_killed:
            sys.exit(1)
        if self._stopped_by and not self._are_ready:
            raise Stopped(self._stopped_by)

    # --- signals

    def _is_stopping(self) -> bool:
        return self._stopped_by != 0

    @contextmanager
    def _signals(self) -> Generator[None, None, None]:
        """Take signals, each of which ends a wait; the handlers stay, for an echo of a signal."""
        self._woken, waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(waking, False)
        before_fd = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_fd)
            os.close(self._woken)
            os.close(waking)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
        elif not self._stopped_by:
            self._stopped_by, self._stopped_at = number, time.monotonic()
        elif time.monotonic() - self._stopped_at >= AGAIN_S:
            self._in_a_hurry = True

    def _wait(self, timeout_s: float | None) -> None:
        """Until a signal, the end of a process, a message of one, or the timeout."""
        waited: list[int | Connection] = [self._woken]
        for place in self._places:
            waited += [place.process.sentinel] if place.process else []
            waited += [place.ready] if place.ready else []
        wait(waited, timeout_s)
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _signal_all(self, number: int) -> list[BaseProcess]:
        """Send a signal to the processes that run; returns them."""
        processes = [place.process for place in self._places if place.process]
        running = [process for process in processes if process.is_alive()]
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        return running

    def _pass_hangup_on(self) -> None:
        if self._hung_up:
            self._hung_up = False
            self._signal_all(signal.SIGHUP)

    # --- the life of a process

    def _start_missing(self) -> None:
        for place in self._places:
            if place.process or place.start_at > time.monotonic() or self._is_stopping():
                continue
            try:
                self._start(place)
            except OSError as exc:  # the system has no memory or no process left
                if not self._are_ready:
                    raise
                self._replace_later(place, f"cannot start: {exc.strerror or exc}")

    def _start(self, place: _Place) -> None:
        reader, writer = self._context.Pipe(duplex=False)
        with writer:
            args = (
                self._settings,
                self._listener,
                self._serve,
                writer,
                place.node,
                self._cores,
            )
            process = self._context.Process(target=_child, args=args)
            place.ready, place.ready_at = cast("Connection", reader), None
            with held_back():
                process.start()
            place.process = process

    def _until_restart(self) -> float | None:
        """Seconds until a process is to be started; None if all of them run."""
        moments = [place.start_at for place in self._places if not place.process]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _note_ready(self) -> None:
        for place in self._places:
            if place.ready and place.ready.poll():
                with suppress(EOFError):  # it died
                    place.ready.recv_bytes()
                    place.ready_at = time.monotonic()
                place.ready.close()
                place.ready = None
        if not self._are_ready and all(place.ready_at is not None for place in self._places):
            self._are_ready = True
            log.info("%d processes are ready", len(self._places))
            self._on_ready()

    def _note_dead(self) -> None:
        for place in self._places:
            process = place.process
            if not process or process.is_alive() or self._is_stopping():
                continue
            if not self._are_ready:  # it never served: another would not either
                _end_with(process)
            # Its gauges are dropped; its counters stay counted.
            multiprocess.mark_process_dead(process.pid)  # pyright: ignore[reportUnknownMemberType]
            self._replace_later(place, f"{process.pid} ended with {_end_of(process)}")

    def _replace_later(self, place: _Place, what: str) -> None:
        served_s = time.monotonic() - place.ready_at if place.ready_at is not None else 0.0
        place.n_deaths = 1 if served_s >= _STEADY_S else place.n_deaths + 1
        wait_s = restart_s(place.n_deaths)
        log.error("process %s; starting another in %g s", what, wait_s)
        if place.ready:
            place.ready.close()
        place.process = place.ready = None
        place.start_at = time.monotonic() + wait_s

    # --- the end

    def _end_all(self) -> bool:
        """Have all processes end; returns whether any had to be killed."""
        self._on_stop()
        # While anyone holds it open, the kernel takes connections that nobody will answer.
        self._listener.close_sockets()
        running = self._signal_all(signal.SIGTERM)
        begun, patience_s = time.monotonic(), most_stop_s(self._settings)
        has_hurried = False
        while running:
            if self._in_a_hurry and not has_hurried:
                has_hurried = True
                self._signal_all(signal.SIGTERM)
                patience_s = min(patience_s, time.monotonic() - begun + _HURRY_S)
            left_s = begun + patience_s - time.monotonic()
            if left_s <= 0:
                return self._kill_all(time.monotonic() - begun)
            self._wait_for_end(running, left_s)
            running = [process for process in running if process.is_alive()]
        return False

    def _wait_for_end(self, running: list[BaseProcess], timeout_s: float) -> None:
        wait([self._woken, *(process.sentinel for process in running)], timeout_s)
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _kill_all(self, waited_s: float) -> bool:
        killed = self._signal_all(signal.SIGKILL)
        for process in killed:
            process.join()
        if killed:
            log.error("%d processes did not end in %.0f s; killed", len(killed), waited_s)
        return bool(killed)


def _end_of(process: BaseProcess) -> str:
    """How a process ended: by a signal, or with a status."""
    status = process.exitcode or 0
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _end_with(process: BaseProcess) -> None:
    """End this process because one of its processes ended before it was ready."""
    if not process.exitcode or process.exitcode < 0:  # else the process has said why
        logs.fatal(f"a server process ended with {_end_of(process)} before it was ready")
    sys.exit(1)


def _child(
    settings: Settings,
    listener: Listener,
    serve: Serve,
    ready: Connection,
    node: frozenset[int],
    cores: int,
) -> None:
    if node:  # before any other thread starts: threads inherit the cores of their parent
        os.sched_setaffinity(0, node)
    # A terminal sends Ctrl-C to all of us; the parent's SIGTERM is the one that counts.
    held = (signal.SIGINT, signal.SIGHUP)
    for number in held:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    if parent := multiprocessing.parent_process():
        end_with_parent(parent.join, most_stop_s(settings))
    logs.configure(settings.log_level, settings.log_format)

    def on_ready() -> None:
        with suppress(BrokenPipeError):  # the parent is gone, and SIGTERM is on its way
            ready.send_bytes(b"ready")

    try:
        serve(settings, listener, on_ready, cores)
    except Stopped as exc:  # before this process was ready; the parent says why
        sys.exit(exc.status)
    except MatryoError as exc:
        logs.fatal(exc.message)
        sys.exit(1)
    except Exception:
        # multiprocessing would print a traceback, which is no log line.
        log.exception("a server process failed")
        sys.exit(1)
