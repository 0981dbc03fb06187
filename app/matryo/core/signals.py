"""Signals to a command: which of them end a command, and how.

A process whose id is 1, as in a container, has no default for any signal: a signal without a
handler is dropped. Every command therefore sets handlers before it does anything else.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 1.0
"""Seconds after which a second signal to stop is a second request, and not an echo of the first.

`timeout` and systemd signal a process and its group, and a parent passes the signal on as well.
"""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNUSED = (signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal to stop came; raised in the main thread by whatever runs there.

    Attributes:
        status: what the process ends with, by a shell's rule: 130, 143 or 129.
        sentence: says which signal came.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number
        self.sentence = f"stopped by {signal.Signals(number).name}"


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """Let SIGINT, SIGTERM and SIGHUP end the block with its `finally` clauses.

    A second signal, a second or more later, ends the process at once. A signal that the parent
    ignores, as `nohup` does, stays ignored. Handlers of before are restored at the end.

    Raises:
        Stopped: at the first signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise Stopped(number)
        if time.monotonic() - first >= AGAIN_S:
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (*_STOPPING, *_UNUSED)}
    try:
        for number in _STOPPING:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, stop)
        # The parent may have held signals back until the handlers are there.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back(*numbers: int) -> Generator[None, None, None]:
    """Hold back signals for the block; processes that the block starts hold them back too.

    Args:
        numbers: by default SIGINT and SIGHUP. A terminal sends both to the children as well, and
            a child that has no handlers yet would end with a traceback.
    """
    held = numbers or (signal.SIGINT, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_others() -> None:
    """Ignore the signals that must not end a server: SIGHUP, SIGUSR1 and SIGUSR2.

    Processes that are started from here on ignore them as well.
    """
    for number in (signal.SIGHUP, *_UNUSED):
        signal.signal(number, signal.SIG_IGN)
