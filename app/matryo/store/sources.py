"""The files that an artefact was built from, and whether they have changed since.

A file is hashed again only if its size, times or inode differ from those that were recorded.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matryo.store.files import sha256_file

log = logging.getLogger(__name__)

Stamp = tuple[int, ...]
"""Size in bytes, time of modification, time of change (both in ns), and inode of a file."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a build read.

    Attributes:
        path: absolute, links kept as the user gave them.
        sha256: of the content.
        stamp: of the file when it was hashed; empty in records of earlier builds.
    """

    path: str
    sha256: str
    stamp: Stamp = ()


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file, or of the file that a link leads to.

    Raises:
        OSError: the file is gone, or cannot be reached.
    """
    facts = path.stat()
    return (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


def find_change(sources: Sequence[SourceFile]) -> str | None:
    """What has changed in the files that an artefact was built from; None if nothing has.

    Args:
        sources: the weights first. If the weights are gone, nothing contradicts the artefact, and
            the other files are not looked at.
    """
    for source in sources:
        path = Path(source.path)
        try:
            stamp = stamp_of(path)
            if stamp == source.stamp or (found := _sha256(path, stamp)) == source.sha256:
                continue
        except OSError as exc:
            if os.path.lexists(path):
                log.warning("%s cannot be compared with what was built from it: %s", path, exc)
            if source is sources[0]:
                return None
            continue
        return f"{path} now has sha256 {found}, but was built from as {source.sha256}"
    return None


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, stamp: Stamp) -> str:  # noqa: ARG001 - another stamp, another hash
    """SHA-256 of a file. A process that asks again gets the hash of the last time."""
    return sha256_file(path)
