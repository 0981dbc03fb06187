"""Bytes in a folder of this machine, or of a disk that several machines share.

<folder>/bytes/<key>      an object; whole and on the disk
<folder>/aside/<random>   an object that is being written
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from matryo.batch.blobs import BlobMissing
from matryo.core.errors import StorageFull, StorageUnavailable
from matryo.store.files import make_folder, publish_file

log = logging.getLogger("matryo")

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_OLD_S = 3600  # a write aside takes seconds
_TRIES = 3
_RESERVE_BYTES = 16 * 1024 * 1024
_RESERVE_PART = 20  # of a small disk


class LocalBlobs:
    """Objects as files.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._bytes, self._aside = folder / "bytes", folder / "aside"

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object aside, have the disk hold it, and give it its name."""
        aside, final = self._aside / secrets.token_hex(16), self._bytes / key
        with _translated():
            make_folder(self._aside)
            self._check_room(len(data))
            try:
                aside.write_bytes(data)
                _publish(aside, final)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def _check_room(self, n_bytes: int) -> None:
        """Leave some of the disk to the database, which needs room even to remove a file."""
        disk = os.statvfs(self._aside)
        reserve = min(_RESERVE_BYTES, disk.f_frsize * disk.f_blocks // _RESERVE_PART)
        if disk.f_frsize * disk.f_bavail < n_bytes + reserve:
            raise OSError(errno.ENOSPC, "the last bytes of the disk are the database's", None)

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` up to `end`."""
        with _translated():
            try:
                with (self._bytes / key).open("rb") as file:
                    file.seek(start)
                    data = file.read(end - start)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise BlobMissing(key) from None
        if len(data) != end - start:
            raise BlobMissing(key)
        return data

    def size(self, key: str) -> int | None:
        """Number of bytes of an object; None if there is none."""
        with _translated():
            try:
                return (self._bytes / key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, and the folders that are empty then."""
        folders: set[Path] = set()
        with _translated():
            for key in keys:
                path = self._bytes / key
                path.unlink(missing_ok=True)
                folders.add(path.parent)
        for folder in folders - {self._bytes}:
            with contextlib.suppress(OSError):  # it has other objects
                folder.rmdir()

    def keys(self) -> Iterator[str]:
        """Names of all objects."""
        with _translated():
            for root, _, names in os.walk(self._bytes):
                for name in names:
                    yield (Path(root) / name).relative_to(self._bytes).as_posix()

    def tidy(self) -> None:
        """Remove what was written aside an hour ago or earlier."""
        with _translated():
            for path in self._aside.iterdir() if self._aside.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    if path.stat().st_mtime < time.time() - _OLD_S:
                        path.unlink()


def _publish(aside: Path, final: Path) -> None:
    """Give a file its name, in a folder that `delete` of another thread may just remove."""
    for left in reversed(range(_TRIES)):
        try:
            make_folder(final.parent)
            publish_file(aside, final)
            return
        except FileNotFoundError:
            if not left:
                raise


@contextlib.contextmanager
def _translated() -> Generator[None, None, None]:
    """Turn errors of the operating system into those of the storage."""
    try:
        yield
    except OSError as exc:
        log.warning("batch store: %s", exc)
        raise (StorageFull() if exc.errno in _FULL else StorageUnavailable()) from exc
