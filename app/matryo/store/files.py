"""Files and folders: hashed, written whole, removed whole, and named when there is no room."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from matryo.core.errors import StoreFull, StoreUnwritable

CHUNK_BYTES = 1 << 20
PART = ".part"
TEMPORARY = ".tmp"


@contextlib.contextmanager
def room_for(folder: Path, n_bytes: int = 0) -> Generator[None, None, None]:
    """Refuse at once if the disk of `folder` has less than `n_bytes` free.

    A disk that fills up during the block, or that we may not write, is named as such too.

    Raises:
        StoreFull: before or during the block; the message says how much is missing.
        StoreUnwritable: the folder is not ours to write.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise StoreFull(
            f"not enough room in {folder}: {n_bytes:,} bytes needed, {free:,} free. "
            "Free some space, or point MATRYO_HOME at a larger disk."
        )
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise StoreUnwritable(
                f"cannot write to {folder}: {exc.strerror}. Point MATRYO_HOME at a folder that "
                "this user may write."
            ) from exc
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(existing).free
        raise StoreFull(
            f"the disk of {folder} is full ({free:,} bytes free). Free some space, or point "
            "MATRYO_HOME at a larger disk, and run the command again."
        ) from exc


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as 64 hex digits, read once in pieces of 1 MiB."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(buffer):
            digest.update(view[:n_bytes])
            if progress:
                progress(n_bytes)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; readers see the old or the new, never half."""
    aside = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def remove_tree(path: Path) -> None:
    """Remove a folder, or nothing if it is gone; it loses its final name first."""
    if not path.exists():
        return
    doomed = path.with_name(f"{path.name}{TEMPORARY}-gone-{os.getpid()}")
    path.rename(doomed)
    shutil.rmtree(doomed)
