"""Ends a run early, so that the cores are free for work that may not wait."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable


class Interrupted(Exception):
    """A run was interrupted, and gave no vectors."""


class Interrupt:
    """Asks a run to end early. Any thread may call the methods.

    A run asks often enough to end within a few milliseconds. A run that is about to end anyway may
    give its vectors in spite of the interrupt.

    Attributes:
        flag: 0, and 1 once the run should end; for native code.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.flag = ctypes.c_int32(0)
        self._on_set: Callable[[], None] | None = None

    @property
    def is_set(self) -> bool:
        """Whether the run should end."""
        return self.flag.value != 0

    def set(self) -> None:
        """Ask the run to end."""
        with self._lock:
            self.flag.value = 1
            if self._on_set:
                self._on_set()

    def watch(self, on_set: Callable[[], None] | None) -> None:
        """Have a function called when the interrupt is set, or at once if it is set already.

        Args:
            on_set: in place of the one before; None for no function.
        """
        with self._lock:
            self._on_set = on_set
            if self.is_set and on_set:
                on_set()
