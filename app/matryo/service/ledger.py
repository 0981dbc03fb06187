"""What each key has used, by the key's name: in this process, or for all processes of a server.

A reload of the keys changes nothing here. A restart of the server begins anew.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

REQUESTS, TOKENS, DAY = 0, 2, 4
"""Index of the first of two numbers: what is used of a bucket and when that was noted; the day and
what is used of the day's quota. Zeros stand for nothing used."""

_NUMBERS, _NUMBER_BYTES = 6, 8


@dataclass(frozen=True, slots=True)
class Row:
    """The usage of one key.

    Attributes:
        numbers: six float64; see `REQUESTS`, `TOKENS` and `DAY`.
        locked: holds off other processes for a block that reads and writes the numbers.
    """

    numbers: memoryview[float] = field(
        default_factory=lambda: memoryview(bytearray(_NUMBERS * _NUMBER_BYTES)).cast("d")
    )
    locked: Callable[[], AbstractContextManager[None]] = nullcontext


class Ledger:
    """The rows of all keys.

    Args:
        folder: that the processes of one server share; None for one process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._rows: dict[str, Row] = {}
        self._folder = folder / "limits" if folder else None
        self._lock: int | None = None

    def row(self, name: str) -> Row:
        """The row of a key; a new one at the first call.

        Raises:
            OSError: the shared folder has no room.
        """
        if name not in self._rows:
            self._rows[name] = self._shared(name, self._folder) if self._folder else Row()
        return self._rows[name]

    def _shared(self, name: str, folder: Path) -> Row:
        """A row in a file that every process maps."""
        folder.mkdir(exist_ok=True)
        if self._lock is None:
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        digest = hashlib.sha256(name.encode()).digest()
        file = os.open(folder / digest.hex(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, _NUMBERS * _NUMBER_BYTES)
            mapped = mmap.mmap(file, _NUMBERS * _NUMBER_BYTES)
        finally:
            os.close(file)
        lock, position = self._lock, int.from_bytes(digest[:4])
        return Row(memoryview(mapped).cast("d"), lambda: _held(lock, position))


@contextmanager
def _held(lock: int, position: int) -> Generator[None, None, None]:
    """Hold one byte of a file of locks; the kernel frees the byte if this process ends."""
    import fcntl

    fcntl.lockf(lock, fcntl.LOCK_EX, 1, position)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, position)
