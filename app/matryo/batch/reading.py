"""Reads the input of a batch on threads, and goes on where it was when the storage was away."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from matryo.batch.claims import Claim
from matryo.batch.lines import FileCheck, LineLimits, RawLine, split_lines
from matryo.batch.patience import Patience
from matryo.batch.storage import Storage
from matryo.batch.windows import Window, WindowLimits, read_windows
from matryo.core.errors import StorageDamaged

_CHECKED_LINES = 256  # that are checked in one go, which takes milliseconds


class Input:
    """The input of a claimed batch, from the first line that is not committed.

    Args:
        claim: of the batch.
        storage: has the input.
        patience: makes every call of the storage.
        limits: of the file.
    """

    def __init__(
        self, claim: Claim, storage: Storage, patience: Patience, limits: LineLimits
    ) -> None:
        self._claim, self._storage = claim, storage
        self._patience, self._limits = patience, limits
        self._n_lines, self._n_bytes = claim.progress.n_lines, claim.progress.n_bytes
        self._lines: Iterator[RawLine] | None = None
        self._windows: Iterator[Window] | None = None

    async def check_some(self, check: FileCheck) -> bool:
        """Feed a check with the next lines; False if the check needs no further ones."""
        return await self._patience.call(lambda: self._check_some(check))

    async def next_window(self, limits: WindowLimits) -> Window | None:
        """The next window; None at the end."""
        return await self._patience.call(lambda: self._next_window(limits))

    def _check_some(self, check: FileCheck) -> bool:
        lines, self._lines = self._lines or self._open(), None  # a generator ends with its error
        n_fed = 0
        for line in islice(lines, _CHECKED_LINES):
            n_fed += 1
            self._n_lines, self._n_bytes = line.number, self._n_bytes + line.n_bytes
            if not check.feed(line):
                return False
        self._lines = lines
        if n_fed == _CHECKED_LINES:
            return True
        self._check_end()
        return False

    def _next_window(self, limits: WindowLimits) -> Window | None:
        windows, self._windows = self._windows, None
        if windows is None:
            windows = read_windows(self._open(), self._claim.batch.endpoint, limits)
        window = next(windows, None)
        self._windows = windows
        if window is None:
            self._check_end()
            return None
        self._n_lines += window.n_lines
        self._n_bytes += window.n_bytes
        return window

    def _check_end(self) -> None:
        """Refuse an input that ends early."""
        expected = self._claim.input.n_bytes
        if self._n_bytes != expected:
            raise StorageDamaged(
                f"{self._claim.input.id} ends after {self._n_bytes} bytes, and had {expected}"
            )

    def _open(self) -> Iterator[RawLine]:
        """The lines from where the input was read to."""
        chunks = self._storage.read(self._claim.input, self._n_bytes)
        return split_lines(chunks, self._limits.max_line_bytes, self._n_lines)
