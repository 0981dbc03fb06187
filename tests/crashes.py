"""Ends a process at any of its steps on the disk, or pretends to.

Python announces every operation on files as an audit event before it happens. A crash at step
`n` is an exception from the event of step `n`, and from every later one: a process that is dead
cleans nothing up. No list of steps is kept here or in the code under test.

Run as a module in a process of its own, `die_at` kills that process in place of raising.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_READS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr"}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Crash(BaseException):
    """The process under test has ended here."""


class _Steps:
    """Counts the steps on the disk while armed.

    Attributes:
        root: the folder whose steps count; None while not armed.
        n_done: steps begun so far.
        fatal: number of the step at which the process ends; None for never.
        end: what ends it.
    """

    def __init__(self) -> None:
        self.root: Path | None = None
        self.n_done = 0
        self.fatal: int | None = None
        self.end: Callable[[], None] = _raise
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None or not self._changes(event, arguments):
            return
        if self.fatal is not None and self.n_done >= self.fatal:
            self.end()
        self.n_done += 1

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an event announces a change below the root, its locks apart."""
        if event == "open":
            if not int(arguments[2] or 0) & _WRITE_FLAGS:
                return False
        elif not event.startswith("os.") or event in _READS:
            return False
        if not arguments or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return False
        path = os.fsdecode(arguments[0])
        if not path.startswith("/"):  # shutil.rmtree names what it removes below an open folder
            return event in ("os.remove", "os.rmdir")
        inside = Path(path).is_relative_to(str(self.root))
        return inside and not Path(path).is_relative_to(f"{self.root}/locks")


def _raise() -> None:
    raise Crash


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_steps = _Steps()


def count_steps(root: Path, work: Callable[[], object]) -> int:
    """Do the work, and return the number of its steps below `root`."""
    _steps.root, _steps.n_done, _steps.fatal = root, 0, None
    try:
        work()
    finally:
        _steps.root = None
    return _steps.n_done


def crash_at(step: int, root: Path, work: Callable[[], object]) -> None:
    """Do the work up to its step `step`, counted from 0, and raise `Crash` there."""
    _steps.root, _steps.n_done, _steps.fatal, _steps.end = root, 0, step, _raise
    try:
        work()
    finally:
        _steps.root = None


def die_at(step: int, root: Path, work: Callable[[], object]) -> None:
    """Do the work up to its step `step`, and kill this process with SIGKILL there."""
    _steps.root, _steps.n_done, _steps.fatal, _steps.end = root, 0, step, _kill
    work()
    _steps.root = None
