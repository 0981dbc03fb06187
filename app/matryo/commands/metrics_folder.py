"""The folder in which server processes add up their metrics, and the folders that others left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from matryo.store.files import temporary_directory

_PREFIX, _LOCK = "matryo-metrics-", "lock"


@contextlib.contextmanager
def metrics_folder() -> Generator[Path, None, None]:
    """A new temporary folder, removed at the end of the block.

    A process that is killed removes nothing. Its folders are removed here, by the next process:
    whoever uses a folder holds a lock, which the kernel frees when the process ends.

    Raises:
        SettingsInvalid: there is no temporary folder that this user may write.
    """
    parent = temporary_directory()
    for folder in parent.glob(f"{_PREFIX}*"):
        _remove_stale(folder)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _lock(folder)
        # Until the lock was taken, another process could take the folder for a stale one.
        if lock is not None:
            return folder, lock


def _remove_stale(folder: Path) -> None:
    """Remove a folder of this user that no process uses."""
    with contextlib.suppress(OSError):
        if folder.lstat().st_uid != os.getuid():
            return
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """The descriptor of a folder's lock; None if another process has the lock, or removed it."""
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None
