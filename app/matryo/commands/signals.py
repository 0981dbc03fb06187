"""Signals that end a command: one sentence, what was begun is removed, and a status of its own."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import click

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal came; raised in the main thread, wherever that is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """Let SIGINT, SIGTERM and SIGHUP end the block with its `finally` clauses.

    The process then ends with the status that a shell gives such an end: 130, 143 or 129. A
    second signal changes nothing. A signal that the parent ignores, as `nohup` does, stays
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    except _Stopped as exc:
        click.echo(f"matryo: stopped by {signal.Signals(exc.number).name}", err=True)
        sys.exit(128 + exc.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
