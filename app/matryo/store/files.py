"""Files and folders: hashed, written whole, replaced whole, and removed whole.

This module alone writes, renames and removes in the store. What has its final name is whole
and on the disk: contents and folder entries are synced before the rename and after. Three
endings mark what is not final:

    <name>.part        arrives over the network; the next pull goes on from there
    <name>.tmp-<pid>   is being written, or being removed
    <name>.old         the folder that <name> is about to replace; it counts until <name> exists
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

from matryo.core.errors import SettingsInvalid, StoreFull, StoreUnwritable

CHUNK_BYTES = 1 << 20
PART = ".part"
TEMPORARY = ".tmp"
_OLD = ".old"

_REFUSED = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
        *(errno.EEXIST, errno.ELOOP, errno.ENOENT),
    }
)
"""What the operating system says of a folder that cannot be made, read or written."""


# --- paths and errors


def given_path(text: str | Path) -> Path:
    """The absolute path that a user gave, with `~` replaced and every link kept as given.

    A link keeps its name, because the suffix and the neighbours of that name count.

    Raises:
        SettingsInvalid: the path is empty, or begins with `~` and there is no such home folder.
    """
    if not str(text):
        raise SettingsInvalid("the path is empty; give the path of a file or a folder")
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, FileNotFoundError) as exc:
        raise SettingsInvalid(f"{text} names no folder on this machine: {exc}") from exc


def check_home(home: Path) -> None:
    """Refuse a path that no folder can be made at.

    Raises:
        StoreUnwritable: the path, or a part of the path, is a file or a link to nothing.
    """
    for path in (home, *home.parents):
        if path.is_dir():
            return
        if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - no error counts
            what = f"a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115
        elif os.path.lexists(path):
            what = "not a folder"
        else:
            continue
        raise StoreUnwritable(
            f"MATRYO_HOME is {home}, but {path} is {what}. Point MATRYO_HOME at a folder that "
            "this user may write."
        )


@contextlib.contextmanager
def naming_the_store(folder: Path) -> Generator[None, None, None]:
    """Name the store in an error of the operating system that a path in `folder` causes.

    Raises:
        StoreFull: the disk is full.
        StoreUnwritable: this user may not read or write the folder.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"the disk of {folder} is full ({_free(folder):,} bytes free). Free some space, "
                "or point MATRYO_HOME at a larger disk, and run the command again."
            ) from exc
        if exc.errno not in _REFUSED or not _concerns(exc, folder):
            raise
        raise StoreUnwritable(
            f"cannot use {exc.filename or folder}: {exc.strerror}. Point MATRYO_HOME at a folder "
            "that this user may write."
        ) from exc


def _concerns(exc: OSError, folder: Path) -> bool:
    """Whether the file of an error is in `folder`, or is a folder above."""
    if not isinstance(exc.filename, (str, bytes, Path)):
        return True
    path = Path(os.fsdecode(exc.filename))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def room_for(folder: Path, n_bytes: int = 0) -> Generator[None, None, None]:
    """Refuse at once if the disk of `folder` has less than `n_bytes` free.

    An error of the operating system during the block is named as well, if it says that the
    disk is full or that this user may not write.

    Raises:
        StoreFull: before or during the block; the message says how much is missing.
        StoreUnwritable: this user may not write the folder.
    """
    if (free := _free(folder)) < n_bytes:
        raise StoreFull(
            f"not enough room in {folder}: {n_bytes:,} bytes needed, {free:,} free. "
            "Free some space, or point MATRYO_HOME at a larger disk."
        )
    with naming_the_store(folder):
        yield


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as 64 hex digits, read once in chunks of 1 MiB.

    Args:
        path: the file.
        progress: takes the number of bytes of each chunk read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(buffer):
            digest.update(view[:n_bytes])
            if progress:
                progress(n_bytes)
    return digest.hexdigest()


def temporary_directory() -> Path:
    """The folder of the system for temporary files.

    Raises:
        SettingsInvalid: there is none that this user may write.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as exc:
        raise SettingsInvalid(
            "no temporary folder can be written: tried TMPDIR, /tmp, /var/tmp, /usr/tmp and the "
            "working folder. Set TMPDIR to a folder that this user may write."
        ) from exc


# --- written whole


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str = "new") -> Generator[Path, None, None]:
    """A new folder in `parent`, removed at the end unless it was given a final name by then."""
    folder = parent / f"{name}{TEMPORARY}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they exist; the disk holds the names of new ones."""
    new = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        _sync(folder.parent)


def copy_file(source: Path, target: Path, progress: Callable[[int], None] | None = None) -> None:
    """Copy one file; folders of `target` are made.

    Args:
        source: an existing file.
        target: path of the copy.
        progress: takes the number of bytes of each chunk written.
    """
    with source.open("rb") as reader:
        copy_stream(reader, target, progress)


class Reader(Protocol):
    """A stream of bytes."""

    def read(self, n_bytes: int, /) -> bytes:
        """At most `n_bytes` of the rest; empty at the end."""
        ...


def copy_stream(
    reader: Reader, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write the rest of a stream to `target`; see `copy_file`."""
    make_folder(target.parent)
    with target.open("wb") as writer:
        while piece := reader.read(CHUNK_BYTES):
            writer.write(piece)
            if progress:
                progress(len(piece))


def link_file(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; a copy, where the disk has no links."""
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        copy_file(source, target)


def remove_file(path: Path) -> None:
    """Remove a file, unless it is gone."""
    path.unlink(missing_ok=True)


# --- given a final name


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path`; readers and crashes see the old text or the new."""
    aside = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    publish_file(aside, path)


def publish_file(new: Path, final: Path) -> None:
    """Give a complete file its final name; readers and crashes see the old file or the new."""
    _sync(new)
    new.replace(final)
    _sync(final.parent)


def replace_folder(new: Path, final: Path) -> None:
    """Give a complete folder its final name; call under the lock that guards `final`.

    `find_folder` sees the old folder or the new one at every moment, and so does the next
    process after a crash, which calls `tidy_folder` first.

    Args:
        new: the complete folder, on the same disk.
        final: its final path; a folder that exists there is removed once `new` has the name.
    """
    for root, _, names in os.walk(new):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))
    old = final.with_name(final.name + _OLD)
    if final.exists():
        remove_tree(old)
        final.rename(old)
    new.rename(final)
    _sync(final.parent)
    remove_tree(old)


def find_folder(final: Path) -> Path:
    """`final`, or the folder it was about to replace where a crash left that alone."""
    old = final.with_name(final.name + _OLD)
    return old if not final.exists() and old.is_dir() else final


def tidy_folder(parent: Path) -> None:
    """Remove or finish what a killed process left in `parent`; call under its lock.

    A folder that was about to be replaced gets its name back. Files and folders that were
    being written or removed go. What arrives over the network stays.
    """
    for old in parent.glob(f"*{_OLD}"):
        final = old.with_name(old.name.removesuffix(_OLD))
        if final.exists():
            remove_tree(old)
        else:
            old.rename(final)
            _sync(parent)
    for leftover in parent.glob(f"*{TEMPORARY}-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder, unless it is gone; the folder loses its final name first."""
    if not path.exists():
        return
    doomed = path.with_name(f"{path.name}{TEMPORARY}-gone-{os.getpid()}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Have the disk hold a file's content, or the names in a folder, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # some network disks sync no folders
            raise
    finally:
        os.close(descriptor)


def remove_nested(folder: Path, depth: int) -> None:
    """Remove a folder and what it holds, unless it is gone.

    The folders `depth` levels below lose their final names one by one and in place. What a kill
    leaves of these is removed by the next holder of the lock that guards them.

    Args:
        folder: the folder; its final name goes last.
        depth: 1 if the folder holds what has a final name, 2 if its folders do.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if not path.is_dir() or path.is_symlink():
            remove_file(path)
        elif depth > 1:
            remove_nested(path, depth - 1)
        else:
            remove_tree(path)
    folder.rmdir()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if it is gone. A link counts, and not what it leads to."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
