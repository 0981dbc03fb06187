"""Files that a running server reads again when they change: keys, certificates.

A file counts as changed when its stamp changes: time of change, size, and inode of the file that
the path leads to. A rename over the file and the swap of a symlink in the path, which is how
Kubernetes replaces the files of a Secret, both change the stamp.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Literal, TypeVar

from matryo.core.errors import MatryoError

log = logging.getLogger("matryo")

SWEEP_S = 1.0
"""Seconds from one look at the files to the next."""

T = TypeVar("T")
Outcome = Literal["ok", "refused"]
Use = Callable[[], None]

_Stamp = tuple[tuple[int, int, int, int] | None, ...]


class Reloads:
    """The files of one server that are read again. Plain functions: the caller has the clock.

    Args:
        count: called with what was read and how that ended, for `matryo_reloads_total`.
    """

    def __init__(self, count: Callable[[str, Outcome], None]) -> None:
        self._count = count
        self._watched: list[_Watched[object]] = []

    def __bool__(self) -> bool:
        return bool(self._watched)

    def watch(
        self, what: str, files: Sequence[Path], load: Callable[[], T], use: Callable[[T], None]
    ) -> None:
        """Load the files, use what they hold, and watch them from here on.

        Args:
            what: names the files in the log and in `matryo_reloads_total`: `keys`, `tls`.
            files: paths; whatever is in the way to them may change.
            load: reads and checks all files, and changes nothing else. Runs on any thread. What
                it raises refuses the files: the value of before stays in use.
            use: takes a loaded value into use. Runs on the thread that calls `watch`, later on
                the event loop; must not fail.

        Raises:
            Exception: what `load` raises for the files as they are now.
        """
        stamp = _stamp(files)  # before the load, so that no later change is missed
        use(load())
        watched = _Watched(what, tuple(files), load, use, stamp)
        self._watched.append(watched)  # pyright: ignore[reportArgumentType] - each has its own T

    def read(self, *, at_once: bool = False) -> list[Use]:
        """Read the files that have changed, on any thread, but on one at a time.

        A file is read once its stamp was the same in two calls, because an editor may still write.

        Args:
            at_once: read all files now, as the operator has asked with SIGHUP.

        Returns:
            The steps that take the new values into use, for the event loop to call.
        """
        return [use for one in self._watched if (use := one.read(self._count, at_once=at_once))]


class _Watched(Generic[T]):
    """Files that are loaded together.

    Attributes:
        loaded: their stamp when they were last read, whether or not the value was accepted.
        seen: their stamp in the last call.
    """

    def __init__(
        self,
        what: str,
        files: tuple[Path, ...],
        load: Callable[[], T],
        use: Callable[[T], None],
        stamp: _Stamp,
    ) -> None:
        self._what, self._files, self._load, self._use = what, files, load, use
        self.loaded = self.seen = stamp

    def read(self, count: Callable[[str, Outcome], None], *, at_once: bool) -> Use | None:
        """The step that takes the new value into use; None if there is no new value."""
        before, self.seen = self.seen, _stamp(self._files)
        if not at_once and (self.seen == self.loaded or self.seen != before):
            return None
        try:
            value = self._load()
        except Exception as exc:
            if self._has_changed():
                return None
            self.loaded = self.seen
            reason = exc.message if isinstance(exc, MatryoError) else f"{type(exc).__name__}: {exc}"
            log.error("%s not reloaded, those of before stay in use: %s", self._what, reason)  # noqa: TRY400 - the operator needs no traceback
            count(self._what, "refused")
            return None
        if self._has_changed():
            return None
        self.loaded = self.seen

        def use() -> None:
            self._use(value)
            log.info("%s reloaded", self._what)
            count(self._what, "ok")

        return use

    def _has_changed(self) -> bool:
        """Whether the files changed while they were read; the next call then reads them again."""
        now = _stamp(self._files)
        if now == self.seen:
            return False
        self.loaded, self.seen = (), now
        return True


def _stamp(files: Sequence[Path]) -> _Stamp:
    """What changes when a file does; None for a file that is not there."""
    return tuple(map(_stamp_of, files))


def _stamp_of(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
