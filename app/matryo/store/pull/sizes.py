"""The bytes that each file of a pull may have, which bound what a source can make us write."""

from __future__ import annotations

from collections.abc import Mapping

from matryo.core.errors import CheckpointMismatch
from matryo.store.limits import UNKNOWN_FILE_BYTES

Sizes = Mapping[str, int | None]
"""The bytes of each file, by name; None if the manifest does not say."""


def size_limit(files: Sizes, name: str) -> int:
    """The most bytes that may be written of one file."""
    size = files[name]
    return UNKNOWN_FILE_BYTES if size is None else size


def check_size(what: str, found: int, expected: int | None) -> None:
    """Hold the bytes of a file against those of the pinned file, before any is copied.

    Raises:
        CheckpointMismatch: they differ, so that the hash would differ as well.
    """
    if expected is not None and found != expected:
        raise CheckpointMismatch(
            f"{what} has {found:,} bytes, but the pinned file has {expected:,}. Give the pinned file."
        )
