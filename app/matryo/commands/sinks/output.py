"""Where vectors go: a file, a URL, or standard output; refused before any work is done."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from matryo.commands.remote import Remote, is_url
from matryo.commands.sinks.block import Head, Sink
from matryo.commands.sinks.jsonl import JsonLines
from matryo.commands.sinks.npy import Npy
from matryo.commands.sinks.parquet import Parquet
from matryo.core.errors import SettingsInvalid
from matryo.store.files import PART, make_folder, naming_the_store

SINKS: Mapping[str, Callable[[BinaryIO, Head], Sink]] = {
    ".jsonl": JsonLines,
    ".npy": Npy,
    ".parquet": Parquet,
}
"""The sink of each format, by the end of a file's name."""

_FOLDER = "embed"  # of the store, for outputs behind URLs


@dataclass(frozen=True, slots=True)
class Output:
    """A file for vectors, and the files beside it until it is complete.

    Attributes:
        name: as the user gave it.
        final: the file; of a URL, its copy on this machine.
        url: where the complete file is uploaded; None for a file of this machine.
    """

    name: str
    final: Path
    url: str | None = None

    @property
    def suffix(self) -> str:
        """The end of the name, which chooses the format."""
        return _suffix(self.name)

    @property
    def part(self) -> Path:
        """The rows so far."""
        return self._beside(PART)

    @property
    def whole(self) -> Path:
        """The complete file of a format that is written from the part."""
        return self._beside(f".whole{PART}")

    @property
    def progress(self) -> Path:
        """How far the part is known to be whole."""
        return self._beside(".progress")

    @property
    def texts(self) -> Path:
        """The vectors of distinct texts, for `--dedupe`."""
        return self._beside(".texts")

    @property
    def temporary(self) -> tuple[Path, ...]:
        """Every file that is removed at the end."""
        texts = [self._beside(f".texts{end}") for end in ("", "-wal", "-shm")]
        aside = self._beside(f".progress{PART}")
        return (self.part, self.whole, self.progress, aside, *texts)

    def _beside(self, end: str) -> Path:
        return self.final.with_name(self.final.name + end)


def check_output(
    name: str | None,
    home: Path,
    sources: Sequence[os.stat_result] = (),
    urls: Sequence[str] = (),
) -> Output | None:
    """Refuse an output that cannot be written, before any work is done.

    Args:
        name: a file or a URL; None for standard output.
        home: the store, where the vectors of a URL wait for their upload.
        sources: files of the input, none of which may be the output.
        urls: of the input, likewise.

    Returns:
        The output; None for standard output.

    Raises:
        SettingsInvalid: the output is an input under any name, a folder or a device, has an
            unknown format, or lies in no folder that this user may write.
        StoreUnwritable: likewise, for the store.
    """
    if name is None:
        check_standard_output(sources)
        return None
    if _suffix(name) not in SINKS:
        raise SettingsInvalid(
            f"--output {name}: unknown format '{_suffix(name)}'; "
            f"give a name that ends in {', '.join(SINKS)}"
        )
    if is_url(name):
        return _check_url(name, home, urls)
    # A symbolic link stays, and the file behind it is replaced.
    output = Output(name, Path(os.path.realpath(name)))
    for path in (output.final, *output.temporary):
        _check_file(name, path, sources)
    folder = output.final.parent
    if not folder.is_dir():
        raise SettingsInvalid(f"--output {name}: there is no folder {folder}; make it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsInvalid(f"--output {name}: this user may not write to {folder}")
    return output


def _suffix(name: str) -> str:
    return PurePosixPath(urlsplit(name).path if is_url(name) else name).suffix.lower()


def _check_url(name: str, home: Path, urls: Sequence[str]) -> Output:
    if name in urls:
        raise SettingsInvalid(
            f"--output {name}: this is an input, which would be overwritten; give another name"
        )
    Remote(name).check_writable()
    folder = home / _FOLDER
    with naming_the_store(folder):
        make_folder(folder)
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Output(name, folder / f"{digest}{_suffix(name)}", name)


def _check_file(name: str, path: Path, sources: Sequence[os.stat_result]) -> None:
    try:
        found = path.stat()
    except OSError:
        return
    if any(os.path.samestat(found, source) for source in sources):
        raise SettingsInvalid(
            f"--output {name}: {path.name} is the input, which would be overwritten; give "
            "another name"
        )
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise SettingsInvalid(f"--output {name}: {path.name} is {kind}; give the name of a file")


def check_standard_output(sources: Sequence[os.stat_result] = ()) -> None:
    """Refuse a standard output that is closed, or that is a file of the input.

    Raises:
        SettingsInvalid: either.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
        raise SettingsInvalid("standard output is closed; redirect it to a file")
    try:
        found = os.fstat(sys.stdout.fileno())
    except OSError:  # a stand-in without a descriptor
        return
    if stat.S_ISREG(found.st_mode) and any(os.path.samestat(found, one) for one in sources):
        raise SettingsInvalid("standard output is the input file; redirect to another file")
